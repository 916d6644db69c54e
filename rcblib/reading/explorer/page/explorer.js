/* Show recorded tokens of a picture. Plain script, no dependency; its data are scripts, so that it works from a file. */
(() => {
	"use strict";
	const root = document.querySelector(".rx"), store = window.rcbExplorer, M = store && store.manifest;
	if (!root || !M || !M.images.length || !window.DecompressionStream) return;
	const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", NOTHING = 4095, STEPS = 4094;
	const SVG = new Set(["svg", "path", "rect", "image"]), NS = "http://www.w3.org/2000/svg", code = Object.fromEntries([...LETTERS].map((c, i) => [c, i]));

	// Small helpers
	function h(kind, given, ...children) { // "tag.class", what it is given (may be left out), what is inside
		const [tag, ...look] = kind.split("."), isPlain = given && given.constructor === Object;
		if (!isPlain) { children.unshift(given); given = {}; }
		const node = SVG.has(tag) ? document.createElementNS(NS, tag) : document.createElement(tag);
		if (look.length) node.setAttribute("class", look.join(" "));
		for (const [name, value] of Object.entries(given)) {
			if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
			else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
		}
		node.append(...inside(children));
		return node;
	}
	const inside = (children) => children.flat(2).filter((c) => c != null && c !== false);
	const button = (text, onclick, look = "rx-button", more = {}) => h("button", { type: "button", class: look, onclick, ...more }, text);
	const hidden = { "aria-hidden": "true" }, col = { scope: "col" };
	const scroll = (title, look = "") => h("div", { class: `rx-scroll ${look}`, tabindex: 0, role: "region", "aria-label": title });
	const FOCUS = "button,select,input,[tabindex]";
	function fill(node, ...children) { // what was focused is drawn anew, and focused again
		const at = [...node.querySelectorAll(FOCUS)].indexOf(document.activeElement);
		node.replaceChildren(...inside(children));
		if (at >= 0) node.querySelectorAll(FOCUS)[at]?.focus({ preventScroll: true });
	}
	const percent = (share) => {
		const p = share * 100;
		return (p > 0 && p < 1 ? "under 1" : p > 99 && p < 100 ? "over 99" : String(Math.round(p))) + " %";
	};
	const told = (measure, x) => digits(x) + (measure.unit === "nats" ? " nats" : "");
	const digits = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 ? x.toExponential(1) : x.toPrecision(3));
	const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
	const integers = (text) => [...text.matchAll(/(\.?)(.)(.)/g)].flatMap(([, gap, high, low]) => { // a dot: so many nothings
		const value = (code[high] << 6) | code[low];
		return gap ? Array(value).fill(null) : value === NOTHING ? null : value;
	});
	const numbers = (own) =>
		integers(own.codes).map((c) => (c === null ? null : own.low + (own.high - own.low) * (c / STEPS) ** own.power));

	const waiting = {}, bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
	const unpack = (text) => new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).json();
	function load(name) { // an exhibit comes deflated
		return (waiting[name] ??= new Promise((resolve, reject) => {
			const done = () => (store[name] ? resolve : reject)(store[name]);
			document.head.append(h("script", { src: `${root.dataset.folder}/${name}.js`, onload: done, onerror: done }));
		}).then((own) => (typeof own === "string" ? unpack(own) : own)));
	}
	const addresses = {};
	function address(key, view) { // of a picture's view: made once, so that many crops share one decoded image
		const name = `${seen(key).pictures}/${view}`, source = shownOf(key).views[view].source;
		if (!addresses[name]) {
			const [head, body] = source.split(",");
			addresses[name] = URL.createObjectURL(new Blob([bytes(body)], { type: head.slice(5).split(";")[0] }));
		}
		return addresses[name];
	}

	// What an exhibit says
	function read(own) {
		const starts = [], ids = integers(own.word_ids), shares = numbers(own.word_probabilities);
		let n = 0;
		for (const view of own.views) { starts.push(n); n += view.rows * view.columns; }
		const k = ids.length / n, objects = integers(own.object_ids), prototypes = integers(own.prototype_ids);
		const measures = { sure: { label: "sureness of its first word", more: "surer", unit: "", values: [] } };
		for (let i = 0; i < n; i++) measures.sure.values.push(shares[i * k]);
		for (const signal of M.signals)
			if (own.signals[signal.name]) measures[signal.name] = { ...signal, values: numbers(own.signals[signal.name]) };
		for (const measure of Object.values(measures)) {
			const sorted = measure.values.filter((v) => v !== null).sort((a, b) => a - b);
			measure.ranks = measure.values.map((v) => {
				if (v === null || sorted.length < 2) return null;
				let low = 0, high = sorted.length;
				while (low < high) { const mid = (low + high) >> 1; if (sorted[mid] < v) low = mid + 1; else high = mid; }
				return low / (sorted.length - 1);
			});
		}
		return {
			...own, n, starts, measures,
			near: own.near.map((tokens) => tokens.map(([number, view, position]) => ({ image: own.near_images[number], view, position }))),
			said: (t) => Array.from({ length: k }, (_, i) => [ids[t * k + i], shares[t * k + i]])
				.filter(([id]) => id !== null).map(([id, share]) => [own.words[id] || "(blank)", share]),
			object: (t) => (objects[t] === null ? null : own.objects[objects[t]]),
			prototype: (t) => (prototypes.length && prototypes[t] !== null ? prototypes[t] : null),
			isProbed: (t) => own.probed[t] === "1",
			place(t) {
				const view = starts.findLastIndex((start) => start <= t), at = t - starts[view], columns = own.views[view].columns;
				return { view, row: Math.floor(at / columns), column: at % columns };
			},
			stays(method, budget, question, t) { // null where it is not known
				const kept = own.kept[method];
				if (method === "all") return true;
				return kept ? Boolean((code[kept[kept.length > 1 ? question : 0][t]] >> budget) & 1) : null;
			},
			answer(method, how, budget, question) {
				const id = own.answers[method]?.[method === "all" ? "removed" : how]?.[budget]?.[question] ?? -1;
				return id < 0 ? null : { text: own.questions[question].texts[id], score: own.questions[question].scores[id] };
			},
		};
	}

	// State, which the address keeps
	const LAST = M.budgets.length - 1, FIRST = Math.max(0, M.budgets.findIndex((b) => b >= 0.2)); // at first a fifth stays
	const S = { image: M.images[0].key, model: "", view: 0, token: null, pins: [], method: "", budget: FIRST, how: "removed", layer: "", question: 0 };
	const METHODS = M.methods.filter((own) => own.name !== "all");
	const named = (list, name) => list.find((own) => own.name === name), label = (name) => named(M.methods, name)?.label ?? name;
	const model = () => named(M.models, S.model);
	const image = (key = S.image) => M.images.find((own) => own.key === key);
	const seen = (key) => image(key).models[S.model]; // by the model that is chosen
	const shownOf = (key) => store[`data/${seen(key).pictures}`];
	const share = () => percent(M.budgets[S.budget]);
	let E = null; // the exhibit that is shown

	function fromAddress() {
		const given = new URLSearchParams(location.hash.replace(/^#(explorer\?)?/, ""));
		if (!location.hash.startsWith("#explorer?")) return;
		if (M.images.some((own) => own.key === given.get("image"))) S.image = given.get("image");
		for (const name of ["model", "method", "layer", "how"]) S[name] = given.get(name) || "";
		if (S.how !== "replaced") S.how = "removed";
		for (const name of ["view", "budget", "question"]) if (given.has(name)) S[name] = Math.trunc(given.get(name)) || 0;
		S.budget = clamp(S.budget, 0, LAST);
		S.token = given.has("token") ? Math.trunc(given.get("token")) : null;
		S.pins = [...new Set((given.get("pins") || "").split(".").filter(Boolean).map(Number))].slice(0, 2);
	}
	function toAddress() {
		const kept = new URLSearchParams();
		for (const name of ["image", "model", "layer", "method", "how"]) if (S[name]) kept.set(name, S[name]);
		for (const name of ["view", "budget", "question"]) kept.set(name, S[name]);
		if (S.token !== null) kept.set("token", S.token);
		if (S.pins.length) kept.set("pins", S.pins.join("."));
		history.replaceState(null, "", `#explorer?${kept}`);
	}

	// Parts of the page
	const live = h("div.rx-live", { role: "status", "aria-live": "polite" });
	let speaking;
	const say = (text) => { clearTimeout(speaking); speaking = setTimeout(() => { live.textContent = text; }, 200); };
	let made = 0;
	function choice(title, options, chosen, onchange) {
		const id = `rx-choice-${made++}`, select = h("select", { id, onchange: () => onchange(select.value) });
		list(select, options, chosen);
		return h("div.rx-field", h("label", { for: id }, title), select);
	}
	function list(select, options, chosen) { // options of a group stand below its name
		const groups = new Map();
		for (const [value, text, disabled, group] of options) {
			if (!groups.has(group)) groups.set(group, []);
			groups.get(group).push(h("option", { value, selected: value === chosen, disabled }, text));
		}
		fill(select, [...groups].map(([name, own]) => (name ? h("optgroup", { label: name }, own) : own)));
	}
	const thumbs = h("div.rx-thumbs", { role: "radiogroup", "aria-label": "Picture" }), views = h("div.rx-thumbs.rx-views", { role: "radiogroup", "aria-label": "View" });
	const bar = h("div.rx-bar"), tour = h("div.rx-tour", { hidden: true, role: "region", "aria-label": "Tour" });
	const stage = h("div.rx-stage", {
		tabindex: 0, role: "application", "aria-roledescription": "grid of tokens", "aria-describedby": "rx-help",
	});
	const legend = h("p.rx-legend"), cards = h("div.rx-cards"), drop = h("section.rx-drop", { "aria-label": "Drop tokens" });
	const answers = scroll("Answers", "rx-answers");
	const help = h("p.rx-help", { id: "rx-help" },
		"Point at the picture, or move with the arrow keys. Click, tap or press Enter to pin a token; pin a second one to compare; Escape lets go.");
	const foot = h("div.rx-foot");

	const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
	function radios(node, labels, at, background, take, more = () => null) { // pictures of which one is chosen, one tab stop
		fill(node, labels.map((name, i) => h("button", {
			type: "button", role: "radio", "aria-label": name, title: name, "aria-checked": `${i === at}`, tabindex: i === at ? 0 : -1,
			style: `background:${background(i)}`, onclick: () => take(i),
		}, more(i))));
		node.onkeydown = (event) => {
			if (!MOVES[event.key]) return;
			event.preventDefault();
			const [down, right] = MOVES[event.key], n = labels.length, next = (at + down + right + n) % n;
			node.children[next].focus();
			take(next);
		};
		node.scrollLeft = node.children[at].offsetLeft - node.offsetLeft - node.clientWidth / 2 + 24;
	}
	function drawThumbs() {
		const n = M.images.length;
		thumbs.style.setProperty("--rx-thumbs", `url(${M.thumbs})`);
		radios(thumbs, M.images.map((own) => own.title), M.images.indexOf(image()),
			(i) => `var(--rx-thumbs) ${n > 1 ? (100 * i) / (n - 1) : 0}% 0/${n * 100}% 100%`, (i) => choose(M.images[i].key));
	}
	const whole = (v = S.view) => E.views.findLastIndex((view, i) => i <= v && view.kind === "image"); // the picture that a tile is of
	const edges = ([left, top, right, bottom]) => ({ left, top, width: right - left, height: bottom - top });
	function drawViews() {
		radios(views, E.views.map((view) => view.label), S.view, (i) => `var(--rx-raised) url(${address(S.image, i)}) 50%/contain no-repeat`, see, (i) => {
			const box = i === whole() && S.view !== i && E.views[S.view].box;
			return box && h("i", { style: Object.entries(edges(box)).map(([name, x]) => `${name}:${x * 100}%`).join(";") });
		});
	}
	function elsewhere(t) { // buttons to the tokens of other views over the same place
		const { view, row, column } = E.place(t), own = E.views[view], { left, top, width, height } = edges(own.box ?? [0, 0, 1, 1]);
		const x = left + (width * (column + 0.5)) / own.columns, y = top + (height * (row + 0.5)) / own.rows;
		return E.views.map((other, v) => {
			const at = edges(other.box ?? [0, 0, 1, 1]), c = Math.floor(((x - at.left) / at.width) * other.columns), r = Math.floor(((y - at.top) / at.height) * other.rows);
			if (whole(v) !== whole(view) || !other.box === !own.box || c < 0 || r < 0 || c >= other.columns || r >= other.rows) return null;
			return button(`see it in the ${other.label}`, () => see(v, E.starts[v] + r * other.columns + c), "rx-small");
		});
	}
	function see(view, token = null) { Object.assign(S, { view, token }); drawViews(); drawStage(); update(); say(`${E.views[view].label}.`); }
	function choose(key) { Object.assign(S, { image: key, token: null, pins: [], view: 0, question: 0 }); open(); }

	function drawBar() {
		const layers = [["", "nothing"], ...Object.entries(E.measures).map(([name, own]) => [name, own.label])];
		const models = Object.keys(image().models).map((name) => [name, named(M.models, name).title]);
		fill(bar,
			choice("Model", models, S.model, (value) => { S.model = value; open(); }),
			choice("Lay over the picture", layers, S.layer, (value) => { S.layer = value; update(); }),
			button("Tour in five steps", () => go(0)));
	}

	const cells = (tokens) => tokens.map((t) => { const p = E.place(t); return `M${p.column} ${p.row}h1v1h-1z`; }).join("");
	const inView = () => Array.from({ length: E.views[S.view].rows * E.views[S.view].columns }, (_, i) => E.starts[S.view] + i);
	let paths = {};
	function drawStage() {
		const view = E.views[S.view], box = { viewBox: `0 0 ${view.columns} ${view.rows}`, preserveAspectRatio: "none", ...hidden };
		paths = {};
		for (const name of ["hatch", "drop", "grid", "tiles", "window", "pin", "point"]) paths[name] = h("path", { class: `rx-${name}` });
		paths.tint = Array.from({ length: 8 }, (_, i) => h("path.rx-tint", { "fill-opacity": (0.08 + i * 0.095).toFixed(3) }));
		const lines = [];
		for (let c = 1; c < view.columns; c++) lines.push(`M${c} 0V${view.rows}`);
		for (let r = 1; r < view.rows; r++) lines.push(`M0 ${r}H${view.columns}`);
		paths.grid.setAttribute("d", lines.join(""));
		paths.tiles.setAttribute("d", E.views.map((own, v) => {
			if (!own.box || v === S.view || whole(v) !== S.view) return "";
			const { left, top, width, height } = edges(own.box);
			return `M${left * view.columns} ${top * view.rows}h${width * view.columns}v${height * view.rows}h${-width * view.columns}z`;
		}).join(""));
		fill(stage,
			h("img", { src: address(S.image, S.view), alt: "", draggable: "false" }),
			h("svg", box, paths.tint, paths.hatch, paths.drop, paths.grid, paths.tiles, paths.window, paths.pin, paths.point));
		root.classList.toggle("rx-pixels", shownOf().views[S.view].width < 160);
		stage.style.aspectRatio = `${view.columns} / ${view.rows}`;
		stage.setAttribute("aria-label", `${image().title}${inWords(S.view)}: ${view.rows} rows of ${view.columns} tokens`);
	}
	const inWords = (v) => (E.views.length > 1 ? `, ${E.views[v].label}` : "");
	const fate = (t) => (S.budget < LAST ? E.stays(S.method, S.budget, S.question, t) : null); // whether a token stays
	const isDropped = (t) => fate(t) === false;
	function tint() {
		const measure = E.measures[S.layer], groups = paths.tint.map(() => []);
		for (const t of inView()) {
			const rank = measure?.ranks[t];
			if (rank != null) groups[Math.min(7, Math.floor(rank * 8))].push(t);
		}
		paths.tint.forEach((path, i) => path.setAttribute("d", cells(groups[i])));
		paths.hatch.setAttribute("d", inView().filter((t) => !E.isProbed(t)).map((t) => {
			const { row, column } = E.place(t);
			return `M${column} ${row + 0.5}l.5-.5M${column} ${row + 1}l1-1M${column + 0.5} ${row + 1}l.5-.5`;
		}).join(""));
		const dropped = inView().filter(isDropped);
		paths.drop.setAttribute("d", cells(dropped));
		const finite = measure ? measure.values.filter((v) => v !== null) : [];
		fill(legend,
			measure && [h("span.rx-ramp", hidden), ` deeper: ${measure.more}; ${measure.label} from ${told(measure, Math.min(...finite))} to ${told(measure, Math.max(...finite))}. `],
			inView().some((t) => !E.isProbed(t)) && [h("span.rx-key.rx-key-hatch", hidden), " hatched: not probed. "],
			dropped.length > 0 && [h("span.rx-key.rx-key-drop", hidden), ` faded: ${S.how} (${dropped.length} of ${inView().length}${E.views.length > 1 ? " here" : ""}). `]);
	}

	function crop(key, views, view, row, column, n, size, title) {
		const grid = views[view], r = clamp(row - (n >> 1), 0, Math.max(0, grid.rows - n)), c = clamp(column - (n >> 1), 0, Math.max(0, grid.columns - n));
		return h("svg.rx-crop", { viewBox: `${c} ${r} ${n} ${n}`, width: size, height: size, role: "img", "aria-label": title },
			h("image", { href: address(key, view), width: grid.columns, height: grid.rows, preserveAspectRatio: "none" }),
			n > 1 && h("rect", { x: column, y: row, width: 1, height: 1, class: "rx-crop-mark" }));
	}
	const figure = (picture, words) => h("figure", picture, h("figcaption", words));

	function neighbours(t) {
		const number = E.prototype(t);
		if (number === null) return null;
		const place = h("div.rx-near"), own = E.near[number];
		const draw = () => fill(place, own.filter((near) => shownOf(near.image)).map((near) => {
			const other = image(near.image), grids = seen(near.image).grids.map(([rows, columns]) => ({ rows, columns }));
			const { columns } = grids[near.view];
			return crop(near.image, grids, near.view, Math.floor(near.position / columns), near.position % columns, 3, 52, `token of ${other.title}`);
		}));
		const missing = own.filter((near) => !shownOf(near.image)), before = E;
		draw();
		if (missing.length) Promise.allSettled(missing.map((near) => load(`data/${seen(near.image).pictures}`))).then(() => E === before && draw());
		return h("div.rx-proto", h("h3", `Nearest prototype, number ${E.prototypes[number]}`),
			own.length ? [h("p", "Tokens of other pictures that are most like it:"), place] : h("p", "No other picture here to show it by."));
	}

	function card(t, isPinned) {
		const { view, row, column } = E.place(t), said = E.said(t), covered = E.measures.object_coverage?.values[t], under = E.object(t);
		const where = `Row ${row + 1}, column ${column + 1}${inWords(view)}`;
		const state = fate(t);
		const scores = Object.entries(E.measures).filter(([name]) => name !== "object_coverage").map(([name, own]) => {
			const rank = own.ranks[t];
			if (rank === null) return null;
			return h("li", h("span.rx-rank", { ...hidden, style: `--at:${(rank * 100).toFixed(1)}%` }),
				h("span", `${own.more} than `, rank === 1 ? "all others" : rank === 0 ? "no other" : `${rank < 0.5 ? "only " : ""}${percent(rank)} of the tokens`), h("span.rx-value", `${own.label} ${told(own, own.values[t])}`));
		}).filter(Boolean);
		return h("article", { class: `rx-card${isPinned ? " rx-pinned" : ""}`, "aria-label": where },
			h("header", h("h2", where), isPinned && button("Unpin", () => pin(t), "rx-small"),
				h("p", under ? `lies on: ${under}` + (covered != null ? ` (objects cover ${percent(covered)} of it)` : "") : E.isProbed(t) && E.objects.length ? "lies on no object" : "",
					state !== null && h("strong.rx-state", state ? " stays" : ` is ${S.how}`))),
			h("div.rx-crops", figure(crop(S.image, E.views, view, row, column, 1, 72, "the patch"), "its patch"),
				figure(crop(S.image, E.views, view, row, column, 3, 72, "its window"), "its window")),
			h("h3", "Says alone (the first piece of a word)"),
			said.length ? h("ol.rx-words", said.map(([word, share]) => h("li", h("span", word),
				h("span.rx-bar-track", hidden, h("span", { style: `width:${(share * 100).toFixed(1)}%` })), h("span.rx-value", percent(share)))))
				: h("p", "It was not asked."),
			scores.length > 0 && [h("h3", "Among the tokens of this picture"), h("ul.rx-scores", scores)],
			!E.isProbed(t) && h("p.rx-note", "Not probed: whether it is missed was not measured."), elsewhere(t),
			neighbours(t));
	}
	function spoken(t) {
		const { view, row, column } = E.place(t), [first] = E.said(t), under = E.object(t);
		const stays = fate(t);
		return `Row ${row + 1}, column ${column + 1}${inWords(view)}. ` + (first ? `Says ${first[0]}, ${percent(first[1])}. ` : "Not asked. ") + (under ? `On ${under}.` : "") +
			(E.isProbed(t) ? "" : " Not probed.") + (stays === null ? "" : stays ? " Stays." : ` Is ${S.how}.`) + (S.pins.includes(t) ? " Pinned." : "");
	}
	function drawCards() {
		const shown = [...S.pins];
		if (S.token !== null && !shown.includes(S.token) && shown.length < 2) shown.push(S.token);
		cards.classList.toggle("rx-two", shown.length > 1);
		fill(cards, shown.length ? shown.map((t) => card(t, S.pins.includes(t))) :
			h("p.rx-empty", "Point at the picture: here stands what the token beneath says when the model sees nothing else, and how much it is missed."));
		const mark = (t) => (t === null || E.place(t).view !== S.view ? "" : cells([t]));
		paths.point.setAttribute("d", mark(S.token));
		paths.pin.setAttribute("d", S.pins.map(mark).join(""));
		if (S.token !== null && E.place(S.token).view === S.view) {
			const { row, column } = E.place(S.token), { rows, columns } = E.views[S.view];
			const r = clamp(row - 1, 0, Math.max(0, rows - 3)), c = clamp(column - 1, 0, Math.max(0, columns - 3));
			paths.window.setAttribute("d", `M${c} ${r}h${Math.min(3, columns)}v${Math.min(3, rows)}h${-Math.min(3, columns)}z`);
		} else paths.window.setAttribute("d", "");
	}

	// Dropping tokens
	const rate = (answer) => (answer === null || answer.score === null ? null : answer.score >= 0.5);
	function cell(answer, name) {
		const given = { "data-name": label(name) };
		if (answer === null) return h("td", { ...given, class: "rx-none" }, "not recorded");
		const right = rate(answer);
		return h("td", given, h("span", answer.text || "(nothing)"), right !== null &&
			h("span", { class: right ? "rx-right" : "rx-wrong" }, right ? "✓ right" : "✗ wrong"));
	}
	function total(name) {
		const all = E.questions.map((_, q) => rate(E.answer(name, S.how, S.budget, q))).filter((own) => own !== null);
		return all.length ? `${all.filter(Boolean).length} of ${all.length} right` : "";
	}
	const isAsked = (name, how = S.how) => Boolean(E.answers[name]?.[how]);
	function drawDrop() {
		const options = METHODS.map((own) => {
			const why = isAsked(own.name) ? "" : E.answers[own.name] ? ` (not asked with tokens ${S.how})` : model().unfit[own.name] ? " (cannot be used here)" : " (not recorded)";
			return [own.name, own.label + why, Boolean(why), own.kind];
		});
		const take = (name) => { S.method = name; update(); }, by = choice("Chosen by", options, S.method, take);
		const matching = () => options.filter(([name, text]) => `${text} ${name}`.toLowerCase().includes(find.value.trim().toLowerCase()));
		const find = h("input", { type: "search", id: "rx-find", oninput: () => {
			const found = matching();
			list(by.querySelector("select"), found, S.method);
			say(`${found.length} methods found. Enter chooses the first.`);
		}, onkeydown: (event) => {
			const first = event.key === "Enter" && matching().find(([, , disabled]) => !disabled);
			if (first) { take(first[0]); drop.querySelector("select").focus(); }
		} });
		const slider = h("input", {
			type: "range", id: "rx-budget", min: 0, max: LAST, step: 1, value: S.budget,
			oninput: () => {
				S.budget = Number(slider.value); result(); tint(); drawCards(); toAddress();
				const random = S.method === "random" ? "" : ` Random tokens: ${total("random") || "not recorded"}.`;
				say(`${share()} of the tokens stay. ${label(S.method)}: ${total(S.method) || "not recorded"}.${random}`);
			},
		});
		const hows = h("fieldset.rx-hows", h("legend", "What is dropped is"), ["removed", "replaced"].map((how) => h("label", {},
			h("input", { type: "radio", name: "rx-how", value: how, checked: S.how === how, disabled: !isAsked(S.method, how), onchange: () => { S.how = how; update(); } }),
			how, !isAsked(S.method, how) && " (not asked of this method)")));
		const out = h("output", { for: "rx-budget" }), summary = h("p.rx-summary");
		function result() {
			const names = ["all", ...new Set([S.method, "random"])].filter((name) => name === "all" || E.answers[name]);
			out.textContent = S.budget === LAST ? "all tokens stay" : `${share()} of the tokens stay`;
			slider.setAttribute("aria-valuetext", out.textContent);
			const depends = (E.kept[S.method]?.length ?? 1) > 1;
			fill(summary, names.filter((name) => name !== "all").map((name) => h("span", `${label(name)}: `, h("b", total(name) || "not recorded"))));
			fill(answers, h("table", h("caption", `What the model answers, with all tokens and with ${share()} of them, ${S.how === "removed" ? "the others removed" : "the others replaced by a stand-in"}.`),
				h("thead", h("tr", h("th", col, "Question"), h("th", col, "Right answer"),
					names.map((name) => h("th", col, label(name), h("span.rx-total", total(name)))))),
				h("tbody", E.questions.map((asked, q) => h("tr", { class: depends && q === S.question ? "rx-chosen" : null },
					h("th", { scope: "row" }, depends ? button(asked.text, () => { S.question = q; update(); }, "rx-small", { "aria-pressed": `${q === S.question}` }) : asked.text),
					h("td", { "data-name": "right answer" }, asked.answer || "nobody knows"), names.map((name) => cell(E.answer(name, S.how, S.budget, q), name)))))),
				depends && h("p.rx-note", "This method chooses anew for every question: press one to see its choice."),
				!E.kept[S.method] && S.method !== "all" && h("p.rx-note", `This method ${named(METHODS, S.method).kind === "inside the LLM" ? "drops tokens inside the LLM" : "reads other tokens than these"}, so none are faded in the picture.`));
		}
		fill(drop, h("h2", "Drop tokens"), h("div", { class: "rx-bar" },
			by, options.length > 8 && h("div.rx-field", h("label", { for: "rx-find" }, "Find a method"), find),
			h("div.rx-field.rx-grow", h("label", { for: "rx-budget" }, "How many stay"), slider, out), hows), summary);
		result();
	}

	// Table, export, where it comes from
	function rows() {
		const own = Object.values(E.measures).slice(1), five = [0, 1, 2, 3, 4];
		const head = ["view", "row", "column", "object", "probed", "stays", ...five.flatMap((i) => [`word ${i + 1}`, `probability ${i + 1}`]), ...own.map((m) => m.label)];
		const body = Array.from({ length: E.n }, (_, t) => {
			const { view, row, column } = E.place(t), said = E.said(t), stays = E.stays(S.method, S.budget, S.question, t);
			return [view + 1, row + 1, column + 1, E.object(t) ?? "", E.isProbed(t) ? "yes" : "no", stays === null ? "" : stays ? "yes" : "no",
				...five.flatMap((i) => (said[i] ? [said[i][0], said[i][1].toFixed(4)] : ["", ""])), ...own.map((m) => (m.values[t] === null ? "" : Number(m.values[t].toPrecision(6))))];
		});
		return { head, body };
	}
	function save(name, blob) {
		const link = h("a", { href: URL.createObjectURL(blob), download: name });
		link.click();
		setTimeout(() => URL.revokeObjectURL(link.href), 1000);
	}
	function saveTable() {
		const { head, body } = rows(), quoted = (v) => (/[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v);
		save(`${S.image}-${S.model}.csv`, new Blob([[head, ...body].map((row) => row.map(quoted).join(",")).join("\n")], { type: "text/csv" }));
	}
	function savePicture() {
		const view = E.views[S.view], picture = stage.querySelector("img"), unit = Math.round(960 / view.columns);
		const canvas = h("canvas", { width: unit * view.columns, height: unit * view.rows + 44 }), pen = canvas.getContext("2d");
		const look = (name) => getComputedStyle(root).getPropertyValue(`--rx-${name}`).trim();
		pen.fillStyle = look("paper");
		pen.fillRect(0, 0, canvas.width, canvas.height);
		pen.drawImage(picture, 0, 0, canvas.width, unit * view.rows);
		const paint = (t, name, alpha) => {
			const p = E.place(t);
			Object.assign(pen, { globalAlpha: alpha, fillStyle: look(name) }).fillRect(p.column * unit, p.row * unit, unit, unit);
		};
		for (const t of inView()) {
			const rank = E.measures[S.layer]?.ranks[t];
			if (rank != null) paint(t, "tint", 0.08 + Math.min(7, Math.floor(rank * 8)) * 0.095);
			if (isDropped(t)) paint(t, "paper", 0.84);
		}
		pen.globalAlpha = 1;
		Object.assign(pen, { lineWidth: 4, strokeStyle: look("tint"), fillStyle: look("ink"), font: "18px sans-serif" });
		for (const t of S.pins) { const p = E.place(t); if (p.view === S.view) pen.strokeRect(p.column * unit + 2, p.row * unit + 2, unit - 4, unit - 4); }
		const told = [image().title, S.model, S.layer && E.measures[S.layer].label, S.budget < LAST && `${label(S.method)}, ${share()} stay`];
		pen.fillText(told.filter(Boolean).join(" · "), 8, canvas.height - 16, canvas.width - 16);
		canvas.toBlob((blob) => save(`${S.image}-${S.model}.png`, blob));
	}
	function drawFoot() {
		const { title, question, origin, codebook, unfit } = model(), table = scroll("All tokens"), both = (own) => isAsked(own.name, "replaced");
		const wasOpen = [...foot.querySelectorAll("details")].map((own) => own.open);
		const of = (keep) => METHODS.filter(keep).map((own) => own.label).join(", ") || "none";
		fill(foot,
			h("p.rx-note", `Recorded outputs of ${title}: nothing is computed in your browser. Each token was asked: “${question}”`),
			h("div.rx-bar", button("Save the picture", savePicture),
				button("Save the table", saveTable)),
			h("details", { open: wasOpen[0], ontoggle: (event) => {
				if (!event.target.open || table.firstChild) return;
				const { head, body } = rows();
				fill(table, h("table", h("caption", "Every token of this picture"), h("thead", h("tr", head.map((text) => h("th", col, text)))),
					h("tbody", body.map((row) => h("tr", row.map((text) => h("td", String(text))))))));
			} }, h("summary", "All tokens as a table"), table),
			h("details", { open: wasOpen[1] }, h("summary", "Where these numbers come from"), h("ul", origin.map((line) => h("li", line)),
				codebook && h("li", `codebook: ${codebook}`),
				h("li", "Numbers are stored as one of 4,095 steps from the smallest to the largest of the picture; kept tokens and answers exactly."),
				h("li", `removed and replaced: ${of(both)}`), h("li", `removed only: ${of((own) => E.answers[own.name] && !both(own))}`),
				METHODS.filter((own) => !E.answers[own.name]).map((own) => h("li", `${own.label}: `, unfit[own.name] ? `cannot be used here, ${unfit[own.name]}` : "not recorded")))));
	}

	// Tour
	const best = (name, keep = () => true, sign = 1) => inView().filter((t) => E.measures[name]?.values[t] != null && keep(t))
		.reduce((a, b) => (a === null || sign * E.measures[name].values[b] > sign * E.measures[name].values[a] ? b : a), null);
	const surest = () => best("sure", (t) => E.object(t) !== null) ?? best("sure");
	const SHOWN = [ // what each step of M.tour shows
		() => ({ token: surest(), layer: "", budget: LAST }),
		() => ({ token: surest(), layer: "sure", budget: LAST }),
		() => ({ token: best("sure", () => true, -1), layer: "sure", budget: LAST }),
		() => { const layer = E.measures.global_divergence ? "global_divergence" : "sure"; return { token: best(layer), layer, budget: LAST }; },
		() => ({ token: null, layer: "", budget: FIRST }),
	];
	function go(step) {
		tour.hidden = step < 0;
		if (step < 0) { bar.querySelector(".rx-button").focus(); return; }
		const [title, text] = M.tour[step], n = M.tour.length, isLast = step === n - 1;
		Object.assign(S, { pins: [] }, SHOWN[step]());
		fill(tour, h("h2", { tabindex: -1 }, `${step + 1} of ${n}: ${title}`), h("p", text), h("div", { class: "rx-bar" },
			step > 0 && button("Back", () => go(step - 1)),
			button(isLast ? "Explore freely" : "Next", () => go(isLast ? -1 : step + 1), "rx-button rx-main-button"),
			!isLast && button("End the tour", () => go(-1))));
		update();
		tour.firstChild.focus({ preventScroll: true });
	}

	// Pointing
	function under(event) {
		const box = stage.getBoundingClientRect(), view = E.views[S.view];
		const column = Math.floor(((event.clientX - box.left) / box.width) * view.columns), row = Math.floor(((event.clientY - box.top) / box.height) * view.rows);
		return column < 0 || row < 0 || column >= view.columns || row >= view.rows ? null : E.starts[S.view] + row * view.columns + column;
	}
	function point(t, aloud) { if (t === S.token) return; S.token = t; drawCards(); if (aloud && t !== null) say(spoken(t)); toAddress(); }
	function pin(t) {
		S.pins = S.pins.includes(t) ? S.pins.filter((own) => own !== t) : S.pins.length < 2 ? [...S.pins, t] : [S.pins[0], t];
		S.token = t;
		drawCards(); say(spoken(t)); toAddress();
		if (document.activeElement === document.body) stage.focus({ preventScroll: true }); // what let go is gone
	}
	stage.addEventListener("pointermove", (event) => { if (E && event.pointerType !== "touch") point(under(event), false); });
	stage.addEventListener("click", (event) => { const t = E && under(event); if (t != null) pin(t); });
	stage.addEventListener("focus", () => {
		if (!E || !stage.matches(":focus-visible")) return;
		if (S.token === null) point(best("sure") ?? E.starts[S.view], true);
		else say(spoken(S.token));
	});
	stage.addEventListener("keydown", (event) => {
		if (!E) return;
		const view = E.views[S.view], start = E.starts[S.view], at = S.token === null || E.place(S.token).view !== S.view ? start : S.token;
		const { row, column } = E.place(at);
		if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(at); return; }
		if (event.key === "Escape") { S.pins = []; drawCards(); say("No token is pinned."); toAddress(); return; }
		const moves = { ...MOVES, Home: [0, -column], End: [0, view.columns - 1 - column] };
		if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
		event.preventDefault();
		const [down, right] = moves[event.key];
		point(start + clamp(row + down, 0, view.rows - 1) * view.columns + clamp(column + right, 0, view.columns - 1), true);
	});

	function update() { tint(); drawCards(); drawDrop(); drawFoot(); syncLayer(); toAddress(); }
	function syncLayer() { const select = [...bar.querySelectorAll("select")].at(-1); if (select) select.value = S.layer; }
	let asked = 0;
	async function open(isFirst) {
		const turn = ++asked, names = Object.keys(image().models);
		if (!names.includes(S.model)) S.model = names[0];
		let own;
		try {
			[own] = await Promise.all([load(`data/${S.model}-${S.image}`), load(`data/${seen().pictures}`)]);
		} catch {
			fill(legend, "The data of this picture cannot be read.");
			return;
		}
		if (turn !== asked) return;
		E = read(own);
		S.view = clamp(S.view, 0, E.views.length - 1);
		S.question = clamp(S.question, 0, E.questions.length - 1);
		if (!(S.token >= 0 && S.token < E.n)) S.token = null;
		S.pins = S.pins.filter((t) => t >= 0 && t < E.n);
		if (S.layer && !E.measures[S.layer]) S.layer = "";
		if (!E.answers[S.method] || S.method === "all") S.method = ["codebook", ...Object.keys(E.answers)].find((name) => name !== "all" && E.answers[name]) ?? "all";
		if (!isAsked(S.method)) S.how = "removed";
		if (!root.contains(stage)) fill(root, thumbs, bar, tour, h("div.rx-main", h("div.rx-left", stage, legend, help), cards, drop), answers, foot, live);
		if (isFirst && S.token === null && !S.pins.length) S.token = surest();
		if (E.views.length > 1) stage.before(views); else views.remove();
		drawThumbs(); drawBar(); drawViews(); drawStage();
		const address = location.hash;
		update();
		if (isFirst && !address) history.replaceState(null, "", location.pathname + location.search);
		if (!isFirst) say(`${image().title}. ${E.n} tokens.`);
		root.classList.add("rx-ready");
	}
	window.addEventListener("hashchange", () => { if (location.hash.startsWith("#explorer?")) { fromAddress(); open(); } });
	fromAddress();
	open(true);
})();
