// The ledger's filter. Its state is in the address (#paper=FreeMask&verdict=contradicted), so that a view can be linked
// to, on file:// as well; the address of a claim (#freemask.real.1) shows that claim whatever was filtered.
document.addEventListener("DOMContentLoaded", () => {
  const claims = [...document.querySelectorAll(".fmseg-claim")];
  const count = document.getElementById("fmseg-count");
  if (!count) return;
  const fields = Object.fromEntries(
    ["paper", "verdict", "words"].map((name) => [name, document.getElementById(`fmseg-${name}`)])
  );

  function show() {
    const wanted = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const claim of claims) {
      const text = claim.textContent.toLowerCase();
      const fits =
        (!fields.paper.value || claim.dataset.paper === fields.paper.value) &&
        (!fields.verdict.value || claim.dataset.verdict === fields.verdict.value) &&
        wanted.every((word) => text.includes(word));
      claim.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === claims.length ? `${shown} claims` : `${shown} of ${claims.length} claims`;
  }

  function remember() {
    const state = new URLSearchParams();
    for (const [name, field] of Object.entries(fields)) if (field.value) state.set(name, field.value);
    history.replaceState(null, "", `#${state}`);
    show();
  }

  function follow() {
    const at = decodeURIComponent(location.hash.slice(1));
    const claim = claims.find((c) => c.id === at);
    const state = new URLSearchParams(claim ? "" : location.hash.slice(1));
    for (const [name, field] of Object.entries(fields)) field.value = state.get(name) ?? "";
    show();
    if (claim) claim.scrollIntoView();
  }

  for (const field of Object.values(fields)) field.addEventListener("input", remember);
  window.addEventListener("hashchange", follow);
  follow();
});
