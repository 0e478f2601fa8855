// The list of contents: a link opens the section that it leads to, and the section in view is marked.
(() => {
  const sections = [...document.querySelectorAll("details.section")];
  // A link that somebody cut or typed may end in what stands for no character: %, %E4.
  const named = (hash) => {
    try {
      return decodeURIComponent(hash);
    } catch {
      return hash;
    }
  };
  const reveal = () => {
    const target = location.hash && document.getElementById(named(location.hash.slice(1)));
    if (!target) return;
    const inside = target.querySelector(":scope > details.section");
    if (inside) inside.open = true;
    for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  // A link to where the page already stands changes no hash.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  reveal();

  const contents = document.querySelector(".contents > ul");
  const all = document.createElement("button");
  all.type = "button";
  const name = () => { all.textContent = sections.every((each) => each.open) ? "Close all" : "Open all"; };
  all.addEventListener("click", () => {
    const isOpen = !sections.every((each) => each.open);
    for (const each of sections) each.open = isOpen;
  });
  for (const each of sections) each.addEventListener("toggle", name);
  name();
  contents.append(Object.assign(document.createElement("li"), { className: "all" }));
  contents.lastChild.append(all);

  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) if (id !== "top") seen.observe(document.getElementById(id));

  // Paper has no summary to click on.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of closed) each.open = false; });
})();
