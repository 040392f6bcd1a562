import { Gone, ask, byId, follow, make, setState, setText, show, token } from "./page.js";

const id = location.pathname.split("/").pop();
const key = token();
const PARTS = ["status", "figures", "samples", "log", "warnings", "results"];
const LOSS_EVERY_MS = 5000; // curves are drawn by the machine that trains
const OTHERS_EVERY_MS = 20000;
let known = {};
let isStopping = false;

const look = follow(async () => {
  const answer = await ask(`/api/run/${id}`, known);
  known = { born: answer.born };
  PARTS.forEach((part) => (known[part] = answer.versions[part]));
  standing(answer.row);
  stopButton(answer);
  if (answer.facts) {
    pairs(byId("facts"), answer.facts);
    pairs(byId("settings"), answer.settings);
    show(byId("settings-part"), answer.settings.length > 0);
    setText(byId("forecast"), answer.forecast);
    show(byId("forecast"), Boolean(answer.forecast));
  }
  if (answer.figures) curves(answer.figures, answer.versions.figures);
  if (answer.questions) answers(answer.questions);
  if (answer.scores) results(answer.before_after, answer.scores);
  if (answer.warnings) {
    byId("warnings").replaceChildren(...answer.warnings.map((text) => make("li", { dir: "auto" }, text)).reverse());
    show(byId("warnings-part"), answer.warnings.length > 0);
  }
  if (answer.log) log(answer.log);
  return true;
}, 1000);

function standing(run) {
  setText(byId("name"), run.name);
  document.title = `${run.share ? `${Math.floor(100 * run.share)} % ` : ""}${run.name} · ggtune`;
  setState(byId("state"), run.state);
  setText(byId("reason"), run.reason || "");
  setText(byId("folder"), run.folder);
  const hasBar = typeof run.share === "number";
  show(byId("bar"), hasBar);
  if (hasBar) byId("bar").value = run.share;
  const percent = hasBar ? `${Math.floor(100 * run.share)} %` : "";
  const parts = [percent, run.step && `step ${run.step}`, run.epoch && `epoch ${run.epoch}`, run.eta && `${run.eta} left`];
  setText(byId("progress"), parts.filter(Boolean).join(" · ") + (run.is_whole === false ? " · reading …" : ""));
}

function pairs(list, values) {
  const text = JSON.stringify(values);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(
    ...values.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value))),
  );
}

// -- curves: images, each asked for anew when there is something new and some time has gone by

const images = new Map();

function curves(figures, version) {
  const place = byId("curves");
  const keys = figures.map(([name]) => name).join();
  if (place.dataset.keys !== keys) {
    place.dataset.keys = keys;
    images.clear();
    place.replaceChildren(
      ...figures.map(([name, title]) => {
        const image = make("img", { alt: `${title} over the steps`, loading: "lazy", decoding: "async" });
        images.set(name, { image, version: 0, asked: 0, wanted: 0, timer: 0 });
        return make("figure", {}, make("figcaption", {}, title), image);
      }),
    );
    show(byId("curves-part"), figures.length > 0);
  }
  images.forEach((curve, name) => {
    curve.wanted = version;
    draw(name, curve);
  });
}

function draw(name, curve) {
  if (curve.timer || curve.version === curve.wanted) return;
  const every = name === "loss" ? LOSS_EVERY_MS : OTHERS_EVERY_MS;
  const wait = curve.asked ? Math.max(0, curve.asked + every - Date.now()) : 0;
  curve.timer = setTimeout(() => {
    curve.timer = 0;
    curve.asked = Date.now();
    curve.version = curve.wanted;
    const width = Math.round(curve.image.parentElement.clientWidth);
    curve.width = width;
    curve.image.src = `/figure/${id}/${name}.svg?width=${width}&version=${curve.version}`;
  }, wait);
}

addEventListener("resize", () => images.forEach((curve, name) => {
  const width = curve.image.parentElement.clientWidth;
  if (!curve.width || Math.abs(width - curve.width) < 80) return;
  curve.version = -1;
  draw(name, curve);
}));

// -- sampled answers

function answers(questions) {
  byId("answers").replaceChildren(...questions.map(question));
  show(byId("answers-part"), questions.length > 0);
}

function question(asked) {
  const [last, ...others] = [...asked.answers].reverse();
  const block = make("article", {}, make("h3", { dir: "auto" }, asked.question), answer(last));
  if (asked.reference) {
    block.append(make("p", { className: "when" }, "reference"), make("p", { className: "text", dir: "auto" }, asked.reference));
  }
  if (others.length) {
    block.append(make("details", {}, make("summary", {}, "earlier answers"), ...others.map(answer)));
  }
  return block;
}

function answer(given) {
  const when = given.step ? `after step ${given.step}` : "before training";
  return make(
    "div",
    { className: "answer" },
    make("p", { className: "when" }, when + (given.ended ? "" : ", cut")),
    make("p", { className: "text", dir: "auto" }, given.text),
  );
}

// -- what came out

function results(changes, scores) {
  byId("change").replaceChildren(...changes.map(change));
  show(byId("change-part"), changes.length > 0);
  const rows = scores.rows || [];
  const line = (tag, texts) =>
    make("tr", {}, make("th", { scope: tag === "th" ? "col" : "row" }, texts[0]), ...texts.slice(1).map((text) => make(tag, {}, text)));
  byId("scores").replaceChildren(
    ...(rows.length ? [make("thead", {}, line("th", ["", ...scores.heads])), make("tbody", {}, ...rows.map((row) => line("td", row)))] : []),
  );
  show(byId("scores-part"), rows.length > 0);
}

function change(asked) {
  const block = make("article", {}, make("h3", { dir: "auto" }, asked.question));
  ["before", "after", "reference"].forEach((name) => {
    if (!asked[name]) return;
    block.append(make("p", { className: "when" }, name), make("p", { className: "text", dir: "auto" }, asked[name]));
  });
  return block;
}

function log(lines) {
  const place = byId("log");
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  place.textContent = lines.join("\n");
  show(byId("log-part"), lines.length > 0);
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

// -- the stop button

function stopButton(answer) {
  const isGoing = answer.row.state === "running";
  if (!isGoing) isStopping = false;
  show(byId("stopping"), answer.can_stop && (isGoing || Boolean(byId("stop-said").textContent)));
  show(byId("stop"), isGoing && Boolean(key) && !isStopping && byId("confirm").hidden);
  if (!isGoing) show(byId("confirm"), false);
  if (isGoing && !key) setText(byId("stop-said"), "To stop it from here, open the address that ggtune board has printed.");
}

byId("stop").addEventListener("click", () => {
  show(byId("stop"), false);
  show(byId("confirm"), true);
  byId("stop-no").focus();
});

byId("stop-no").addEventListener("click", () => {
  show(byId("confirm"), false);
  show(byId("stop"), true);
});

byId("stop-yes").addEventListener("click", async () => {
  show(byId("confirm"), false);
  isStopping = true;
  try {
    const answer = await ask(`/api/run/${id}/stop`, {}, { method: "POST", headers: { "X-Ggtune-Token": key } });
    setText(byId("stop-said"), answer.told);
  } catch (error) {
    isStopping = false;
    setText(byId("stop-said"), error instanceof Gone ? error.message : "The board does not answer.");
  }
  look();
});
