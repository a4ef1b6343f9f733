for (const box of document.querySelectorAll(".compare")) {
  const handle = box.querySelector("input");
  const cut = () => box.style.setProperty("--cut", handle.value + "%");
  handle.addEventListener("input", cut);
  cut();
}
