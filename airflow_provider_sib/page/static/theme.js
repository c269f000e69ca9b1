// Takes over light or dark from Airflow, before anything is drawn: its UI keeps the choice under "theme" in the storage
// that this page, being of the same origin, shares, and tells of a change by a storage event.

{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme");
    } catch {
      // no storage: as the system has it
    }
    const isDark = chosen === "dark" || (chosen !== "light" && dark.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  };
  apply();
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
}
