// The browser's half of r2d2.jupyter.terminal: a view of one terminal. Terminal and FitAddon are xterm.js's.
//
// To Python: ready, input, resize, ack (how much of the output is drawn), gone. From Python: replay (to one view,
// which has just become ready), output, ended. Offsets count the bytes of the terminal's whole life.

function theme(element) {
  const dark = (color) => {
    const [red, green, blue] = (color.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
    return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  };
  let at = element;
  while (at && /^(transparent|rgba\(.*, 0\))$/.test(getComputedStyle(at).backgroundColor)) {
    at = at.parentElement;
  }
  return at && dark(getComputedStyle(at).backgroundColor)
    ? { background: "#1c1c1c", foreground: "#e3e3e3", cursor: "#e3e3e3" }
    : {
        background: "#fbfbfb", foreground: "#1f2328", cursor: "#1f2328", selectionBackground: "#add6ff",
        black: "#1f2328", red: "#cf222e", green: "#116329", yellow: "#8a5b00", blue: "#0969da", magenta: "#8250df",
        cyan: "#1b7c83", white: "#6e7781", brightBlack: "#57606a", brightRed: "#a40e26", brightGreen: "#1a7f37",
        brightYellow: "#633c01", brightBlue: "#218bff", brightMagenta: "#a475f9", brightCyan: "#3192aa",
        brightWhite: "#8c959f",
      };
}

function render({ model, el }) {
  const view = Math.random().toString(36).slice(2);
  const box = document.createElement("div");
  box.className = "r2d2-terminal";
  box.dataset.lmSuppressShortcuts = "true"; // keys are the terminal's, not the notebook's
  box.setAttribute("aria-label", model.get("label"));
  box.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(box);

  const terminal = new Terminal({
    rows: model.get("rows"),
    cols: model.get("columns"),
    cursorBlink: true,
    fontSize: 13,
    fontFamily: "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Noto Sans Mono CJK TC', monospace",
    scrollback: 5000,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  let started = false;
  let acknowledged = 0;

  const receive = (message, buffers) => {
    if (message.type === "replay" && message.view === view) {
      started = true;
      acknowledged = message.at;
    } else if (message.type !== "output" || !started) {
      return;
    }
    const bytes = buffers[0] ?? new DataView(new ArrayBuffer(0));
    const drawn = () => {
      if (message.at - acknowledged >= 65536) {
        acknowledged = message.at;
        model.send({ type: "ack", view, at: message.at });
      }
    };
    terminal.write(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength), drawn);
  };
  const end = () => {
    const code = model.get("returncode");
    if (code !== null) {
      terminal.options.cursorBlink = false;
      terminal.write(`\r\n\x1b[2m[ended with exit status ${code}]\x1b[0m\r\n`);
    }
  };
  model.on("msg:custom", receive);
  model.on("change:returncode", end);
  terminal.onData((text) => model.send({ type: "input", text }));
  terminal.onBinary((text) => model.send({ type: "input", codes: Array.from(text, (c) => c.charCodeAt(0)) }));
  terminal.onResize(({ rows, cols }) => model.send({ type: "resize", rows, columns: cols }));

  const dress = () => {
    terminal.options.theme = theme(el);
    box.style.background = terminal.options.theme.background;
  };
  const page = new MutationObserver(dress); // the page's theme was changed
  page.observe(document.body, { attributeFilter: ["class", "style", "data-jp-theme-light", "data-theme"] });

  const observer = new ResizeObserver(() => {
    if (box.clientWidth === 0) {
      return; // not shown now
    }
    if (!terminal.element) {
      dress();
      terminal.open(box);
      model.send({ type: "ready", view });
      end();
    }
    fit.fit();
  });
  observer.observe(box);

  return () => {
    observer.disconnect();
    page.disconnect();
    model.off("msg:custom", receive);
    model.off("change:returncode", end);
    model.send({ type: "gone", view });
    terminal.dispose();
  };
}

export default { render };
