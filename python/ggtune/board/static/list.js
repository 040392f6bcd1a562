import { ask, byId, follow, make, setState, setText, show, spark, token } from "./page.js";

token();
const rows = new Map(); // by id: what the board says of a run, and its elements
let since = 0;
let born = "";

follow(async () => {
  const answer = await ask("/api/runs", { since, born });
  if (answer.born !== born) {
    rows.forEach((row) => row.item.remove());
    rows.clear();
  }
  answer.gone.forEach((id) => {
    rows.get(id)?.item.remove();
    rows.delete(id);
  });
  answer.rows.forEach(update);
  since = answer.version;
  born = answer.born;
  if (answer.rows.length || answer.gone.length) arrange();
  const reading = answer.is_read ? "" : " · reading …";
  const going = [...rows.values()].filter((row) => row.run.state === "running").length;
  setText(byId("count"), `${rows.size} in all, ${going} going on${reading}`);
  show(byId("none"), answer.is_read && !rows.size);
  return true;
}, 1500);

byId("filter").addEventListener("input", filter);

function update(run) {
  let row = rows.get(run.id);
  if (!row) {
    row = { run, ...newItem(run) };
    rows.set(run.id, row);
  }
  const before = row.run;
  row.run = run;
  setText(row.name, run.name);
  row.name.title = run.folder;
  setState(row.state, run.state);
  setText(row.reason, run.reason || "");
  setText(row.of, [run.model, run.data].filter(Boolean).join(" · "));
  const hasBar = typeof run.share === "number";
  show(row.bar, hasBar);
  if (hasBar) row.bar.value = run.share;
  const parts = [run.step && `step ${run.step}`, run.epoch && `epoch ${run.epoch}`, run.eta && `${run.eta} left`];
  setText(row.progress, parts.filter(Boolean).join(" · "));
  const losses = [run.loss && `loss ${run.loss}`, run.held_out && `held-out ${run.held_out}`];
  setText(row.losses, losses.filter(Boolean).join(" · "));
  const n = run.n_warnings || 0;
  setText(row.warnings, n ? `${n} warning${n > 1 ? "s" : ""}` : "");
  const curves = JSON.stringify(run.spark || []);
  if (row.curves !== curves) {
    row.curves = curves;
    row.spark.replaceChildren(spark(run.spark || []));
  }
  filterRow(row);
  return before;
}

function newItem(run) {
  const name = make("a", { href: `/run/${encodeURIComponent(run.id)}`, className: "name", dir: "auto" });
  const state = make("span", { className: "state" });
  const reason = make("p", { className: "reason", dir: "auto" });
  const of = make("p", { className: "of", dir: "auto" });
  const bar = make("progress", { max: 1, hidden: true });
  const progress = make("p", { className: "numbers" });
  const losses = make("p", { className: "numbers" });
  const warnings = make("p", { className: "warned" });
  const sparkPlace = make("div", { className: "spark-place" });
  const item = make(
    "li",
    { className: "run" },
    make("div", { className: "who" }, make("p", { className: "title" }, name, " ", state), reason, of),
    make("div", { className: "how" }, bar, progress, losses, warnings),
    sparkPlace,
  );
  item.dataset.id = run.id;
  return { item, name, state, reason, of, bar, progress, losses, warnings, spark: sparkPlace, curves: "" };
}

// Runs that go on first, then the latest; an element is moved only where its place is another one.
function arrange() {
  const isGoing = (row) => (row.run.state === "running" ? 1 : 0);
  const order = [...rows.values()].sort(
    (a, b) => isGoing(b) - isGoing(a) || b.run.changed - a.run.changed || a.run.name.localeCompare(b.run.name),
  );
  const list = byId("runs");
  order.forEach((row, i) => {
    if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] || null);
  });
}

function filterRow(row) {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  const text = [row.run.name, row.run.state, row.run.model, row.run.data].join(" ").toLowerCase();
  show(row.item, words.every((word) => text.includes(word)));
}

function filter() {
  rows.forEach(filterRow);
}
