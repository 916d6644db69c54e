// One switch for all folded code of a page; without scripts each piece unfolds by itself.
document.addEventListener("DOMContentLoaded", () => {
  const folded = [...document.querySelectorAll("details.folded-code")];
  const title = document.querySelector("article h1, .bd-article h1");
  if (!folded.length || !title) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "show-code";
  const say = () => {
    const shown = folded.every((piece) => piece.open);
    button.textContent = shown ? "Hide all code" : "Show all code";
    return shown;
  };
  button.addEventListener("click", () => {
    const open = !say();
    for (const piece of folded) piece.open = open;
    say();
  });
  say();
  title.after(button);
});
