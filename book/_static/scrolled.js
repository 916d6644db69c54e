/* Tables, equations and figures that are wider than the page scroll by themselves: keys must reach them too. */
addEventListener("load", () => {
  const seen = new ResizeObserver((changed) => {
    for (const { target: box } of changed)
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
  });
  for (const box of document.querySelectorAll(".bd-article :is(.output.text_html, .wide, figure:has(> img, > a > img))"))
    seen.observe(box);
});
