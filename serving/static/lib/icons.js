// Small drawings of buttons. They say nothing by themselves: the button has a label.

const paths = {
  like: "M12 20s-7-4.4-9-8.7C1.4 7.6 3.6 4 7 4c2.1 0 3.8 1.2 5 3 1.2-1.8 2.9-3 5-3 3.400 0 5.600 3.600 4 7.300C19 15.600 12 20 12 20z",
  dislike: "M8 4h9.500c.9 0 1.700.6 1.900 1.500l1.500 6c.3 1.300-.6 2.500-1.900 2.500H14l.8 4c.2 1-.5 2-1.600 2h-.2L8 14zM3 4h3v10H3z",
  not_interested: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM5.700 5.700l12.600 12.600",
  microphone: "M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3zM5 11a7 7 0 0 0 14 0M12 18v3",
  close: "M5 5l14 14M19 5L5 19",
};

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.classList.add("icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", paths[name]);
  drawing.append(path);
  return drawing;
}
