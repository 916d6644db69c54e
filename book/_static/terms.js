// Shows what a term of the glossary means while the pointer or the keyboard rests on it; Escape hides it.
document.addEventListener("DOMContentLoaded", () => {
  for (const term of document.querySelectorAll("a[title] > .std-term")) {
    const link = term.parentElement;
    link.dataset.meaning = link.title;
    link.setAttribute("aria-description", link.title);
    link.removeAttribute("title"); // or the browser would show it a second time
    link.addEventListener("keydown", (event) => event.key === "Escape" && link.classList.add("quiet"));
    for (const leaving of ["blur", "pointerleave"]) {
      link.addEventListener(leaving, () => link.classList.remove("quiet"));
    }
  }
});
