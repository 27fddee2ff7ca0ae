// Before the first paint: the theme that was chosen here, else the system's.
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage may be forbidden; then the system's theme counts */ }
