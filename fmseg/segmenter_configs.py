"""Segmenter configurations as data: name -> size -> mmsegmentation model config.

Plain dicts in mmsegmentation's own words, so that they can be read beside its config files. What depends on the data
(``num_classes``, ``img_size`` of a ViT, the class weights of Mask2Former) is filled in by ``fmseg.segmenters.build``.
``divisor`` is ours: image sides must be multiples of it.

The mini entries score a 16x16 grid for 64-pixel images (stride 4), train from scratch at batch 16 on one CPU thread,
and have convolutional stems, because at this size and without pre-training plain patch embeddings learn slower.
Normalisation: BN in convolutional trunks, stems and MLP heads (single process, so never SyncBN), LN in transformers
as in the papers, GN in the heads of DeepLabV3 (its image-level branch is 1x1, where BN cannot take a batch of one) and
of Mask2Former (as in its paper). No drop-out or drop-path: the mini runs under-fit. Residual branches do not start at
zero: short trainings have no time to open them (the mini CLIP learned nothing from 50,000 pictures with them at zero).
"""

_BN = dict(type="BN")
_GN = dict(type="GN", num_groups=8)
_LN = dict(type="LN", eps=1e-6)
_WHOLE = dict(train_cfg=dict(), test_cfg=dict(mode="whole"))
_WIDTH = 48  # of the mini Mask2Former
_ATTENTION = dict(embed_dims=_WIDTH, num_heads=4, attn_drop=0.0, proj_drop=0.0, dropout_layer=None, batch_first=True)

SEGFORMER_MINI = dict(
    divisor=16,
    type="EncoderDecoder",
    backbone=dict(
        type="ConvStem",
        channels=[32],
        strides=[2],
        backbone=dict(
            type="MixVisionTransformer",
            in_channels=32,
            embed_dims=48,
            num_stages=3,
            num_heads=[1, 2, 4],  # widths 48, 96, 192 on 16x16, 8x8, 4x4
            num_layers=[1, 2, 2],
            patch_sizes=[3, 3, 3],
            strides=[2, 2, 2],
            sr_ratios=[4, 2, 1],
            out_indices=(0, 1, 2),
            mlp_ratio=2,
        ),
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[48, 96, 192],
        in_index=[0, 1, 2],
        channels=64,
        dropout_ratio=0.0,
        norm_cfg=_BN,
        align_corners=False,
    ),
    **_WHOLE,
)

SEGMENTER_MINI = dict(
    divisor=4,
    type="EncoderDecoder",
    backbone=dict(
        type="ConvStem",
        channels=[32, 64, 64, 64],
        strides=[2, 2, 1, 1],
        backbone=dict(
            type="VisionTransformer",
            in_channels=64,
            patch_size=1,  # of the stem's output: patches of 4 pixels
            patch_bias=True,
            embed_dims=64,
            num_layers=2,
            num_heads=1,
            mlp_ratio=2,
            with_cls_token=False,
            final_norm=True,
            norm_cfg=_LN,
            interpolate_mode="bicubic",
        ),
    ),
    decode_head=dict(
        type="SegmenterMaskTransformerHead",
        in_channels=64,
        channels=64,
        embed_dims=64,
        num_layers=1,
        num_heads=1,
        mlp_ratio=2,
        drop_path_rate=0.0,
        dropout_ratio=0.0,
    ),
    **_WHOLE,
)

DEEPLABV3_MINI = dict(
    divisor=4,
    type="EncoderDecoder",
    backbone=dict(
        type="ShallowResNetV1c",
        depth=10,
        stem_channels=16,
        base_channels=32,  # widths 32, 64, 128, all on 16x16
        num_stages=3,
        strides=(1, 1, 1),  # the stem alone divides by 4
        dilations=(1, 2, 4),
        out_indices=(2,),
        norm_cfg=_BN,
        zero_init_residual=False,
    ),
    decode_head=dict(
        type="ASPPHead",
        in_channels=128,
        in_index=0,
        channels=32,
        dilations=(1, 3, 6),
        dropout_ratio=0.0,
        norm_cfg=_GN,
        align_corners=False,
    ),
    **_WHOLE,
)

MASK2FORMER_MINI = dict(
    divisor=16,
    type="EncoderDecoder",
    backbone=dict(
        type="ShallowResNetV1c",
        depth=10,
        stem_channels=24,
        base_channels=32,  # widths 32, 64, 128 on 16x16, 8x8, 4x4
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=_BN,
        zero_init_residual=False,
    ),
    decode_head=dict(
        type="BatchedMask2FormerHead",
        in_channels=[32, 64, 128],
        strides=[4, 8, 16],
        feat_channels=_WIDTH,
        out_channels=_WIDTH,
        num_queries=24,
        num_transformer_feat_level=2,
        align_corners=False,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=2,
            norm_cfg=_GN,
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=_WIDTH, num_heads=4, num_levels=2, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=_WIDTH, feedforward_channels=2 * _WIDTH, num_fcs=2, ffn_drop=0.0),
                ),
            ),
            positional_encoding=dict(num_feats=_WIDTH // 2, normalize=True),
        ),
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=_WIDTH // 2, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=_ATTENTION,
                cross_attn_cfg=_ATTENTION,
                ffn_cfg=dict(embed_dims=_WIDTH, feedforward_channels=4 * _WIDTH, num_fcs=2, ffn_drop=0.0),
            ),
        ),
        loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=2.0, reduction="mean"),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0, reduction="mean"),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
            reduction="mean",
        ),
        train_cfg=dict(
            num_points=128,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    **_WHOLE,
)

CONFIGS = {
    "segformer": {"mini": SEGFORMER_MINI},
    "segmenter": {"mini": SEGMENTER_MINI},
    "mask2former": {"mini": MASK2FORMER_MINI},
    "deeplabv3": {"mini": DEEPLABV3_MINI},
}
