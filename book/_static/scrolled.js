/* Tables and equations that are wider than the page scroll by themselves: keys must reach them too. */
addEventListener("load", () => {
  for (const box of document.querySelectorAll(".bd-article .output.text_html"))
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
});
