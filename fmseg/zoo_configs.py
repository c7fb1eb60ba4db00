"""The zoo's architectures as data, in the words of the libraries whose classes they configure."""

from fmseg.vocabulary import CONTEXT_LENGTH, VOCABULARY_SIZE

# Stable Diffusion's autoencoder with three levels instead of four: 64x64x3 -> 16x16x4
VAE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[16, 32, 64],
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=64,
)

# Stable Diffusion's block layout: four levels, two residual blocks each, cross-attention on the first three
UNET = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    block_out_channels=[32, 48, 64, 64],
    layers_per_block=2,
    cross_attention_dim=64,
    attention_head_dim=2,  # the number of heads, whatever its name says
    norm_num_groups=8,
)

TEXT_ENCODER = dict(
    vocab_size=VOCABULARY_SIZE,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=CONTEXT_LENGTH,
    hidden_act="quick_gelu",
    bos_token_id=VOCABULARY_SIZE - 2,
    eos_token_id=VOCABULARY_SIZE - 1,
    pad_token_id=VOCABULARY_SIZE - 1,
)

# Stable Diffusion 1.4's own noise schedule
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)

# open_clip's own model config: MaskCLIP's ResNet form, a convolutional trunk under attention pooling
CLIP = dict(
    embed_dim=128,
    vision_cfg=dict(image_size=64, timm_model_name="fmseg_convnet", timm_pool="abs_attn", timm_proj=""),
    text_cfg=dict(context_length=CONTEXT_LENGTH, vocab_size=VOCABULARY_SIZE, width=96, heads=3, layers=2),
)

# timm's VisionTransformer: a 16x16 grid of tokens for 64-pixel pictures, and one class token
VIT = dict(
    img_size=64,
    patch_size=4,
    embed_dim=96,
    depth=4,
    num_heads=4,
    mlp_ratio=2.0,
    num_classes=0,
    dynamic_img_size=True,
)
VIT_MEAN, VIT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINO's and iBOT's

# the weak generator's U-Net: the same blocks, half as wide
WEAK_UNET = UNET | dict(block_out_channels=[16, 24, 32, 32], norm_num_groups=8)
