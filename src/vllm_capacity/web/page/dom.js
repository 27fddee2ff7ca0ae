// The few things that are needed to build and change a document. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const shape = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** Set the text of a node that holds nothing else; an unchanged one is left alone. */
export function say(node, text) {
  const first = node.firstChild;
  if (!first) node.append(text);
  else if (first.data !== text) first.data = text;
}

/** Set an attribute, or remove it where there is no value; an unchanged one is left alone. */
export function mark(node, name, value) {
  if (value === undefined || value === null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Bring a parent's children in line with items, keeping the nodes of those that were there. */
export function keep(parent, items, keyOf, create, update) {
  const views = (parent.views ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, view] of views) {
    if (!wanted.has(key)) { view.node.remove(); views.delete(key); }
  }
  items.forEach((item, i) => {
    const key = keyOf(item);
    let view = views.get(key);
    if (!view) views.set(key, (view = create(item)));
    update(view, item);
    if (parent.children[i] !== view.node) parent.insertBefore(view.node, parent.children[i] ?? null);
  });
}

const ICONS = {
  ok: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zm3.6 5.2-4.3 4.9a.8.8 0 0 1-1.2 0L4.3 9.2l1.1-1 1.3 1.3 3.7-4.3z",
  warning: "M8 1.2c.4 0 .7.2.9.5l6.3 11c.4.8-.1 1.8-1 1.8H1.8c-.9 0-1.4-1-1-1.8l6.3-11c.2-.3.5-.5.9-.5zM7.2 5.5v4.2h1.6V5.5zm0 5.4v1.6h1.6v-1.6z",
  critical: "M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1zm2.1 3v5h1.6V4zm0 6.3V12h1.6v-1.7z",
  unknown: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zm-.8 9.9h1.6v1.6H7.2zm.1-1.3c0-2.3 1.7-2.3 1.7-3.6 0-1.5-2.1-1.4-2.2.1H5.2C5.3 2.7 10.7 2.5 10.7 6c0 2-2 2-2 3.6z",
};

/** A shape for each severity, so that colour is never alone. */
export const icon = (name = "unknown") =>
  shape("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" },
    shape("path", { d: ICONS[name], "fill-rule": "evenodd" }));

export function setIcon(svg, name) {
  mark(svg.firstChild, "d", ICONS[name] ?? ICONS.unknown);
  mark(svg, "data-severity", name);
}
