// What both pages share. All text goes into the page as text, never as HTML.

export const byId = (id) => document.getElementById(id);

// An element with properties and children: make("p", {className: "path"}, "text", child)
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

export function setState(element, state) {
  setText(element, state);
  const name = `state ${/^[a-z]+$/.test(state) ? state : ""}`;
  if (element.className !== name) element.className = name;
}

const SVG = "http://www.w3.org/2000/svg";

// The small curve of a run: lists of points in a square of 100
export function spark(curves) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "-3 -3 106 106");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  curves.forEach((points, i) => {
    if (!points.length) return;
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", points.map((point) => point.join(",")).join(" "));
    line.setAttribute("class", i ? "held-out" : "smoothed");
    line.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(line);
  });
  return svg;
}

// Asks again and again, at once when the page comes into sight, not while it is out of it.
export function follow(ask, milliseconds) {
  let timer = 0;
  let isAsking = false;
  const turn = async () => {
    clearTimeout(timer);
    if (isAsking || document.hidden) return;
    isAsking = true;
    let isGood = false;
    try {
      isGood = await ask();
      trouble("");
    } catch (error) {
      trouble(error instanceof Gone ? error.message : "The board does not answer: it has ended, or is out of reach.");
    }
    isAsking = false;
    timer = setTimeout(turn, isGood ? milliseconds : 3 * milliseconds);
  };
  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}

export class Gone extends Error {}

export async function ask(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(parameters).toString();
  const response = await fetch(query ? `${path}?${query}` : path, { cache: "no-store", ...options });
  const answer = await response.json();
  if (!response.ok) throw new Gone(answer.error || `The board has answered with ${response.status}.`);
  return answer;
}

export function trouble(text) {
  setText(byId("trouble"), text);
  show(byId("trouble"), Boolean(text));
}

// The token comes in the part of the address that is sent to nobody, is kept for this tab, and leaves the address.
export function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("ggtune-token", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem("ggtune-token") || "";
}
