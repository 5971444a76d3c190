// What Gradio 6.31 has no Python for. Each part says why it is here.

// Escape stops the answer of the open tab; in an open list it closes the list only. Gradio has no keyboard shortcuts.
const shown = (selector) => [...document.querySelectorAll(selector)].find((element) => element.offsetParent);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.target.matches?.("[role=combobox][aria-expanded=true]")) return;
  const stop = shown(".stop");
  if (stop) stop.click();
  else shown("#right.open .toggle-button")?.click();
});

// Hold Alt+V to speak: record while the keys are down. `code` is the same key in every layout.
let held = false;
document.addEventListener("keydown", (event) => {
  if (event.code !== "KeyV" || !event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();  // macOS would type √
  if (event.repeat || held) return;
  held = true;
  shown(".mic .record-button")?.click();
});
document.addEventListener("keyup", (event) => {
  if (!held || (event.code !== "KeyV" && event.key !== "Alt")) return;
  held = false;
  release(20);
});
// The recorder starts a moment after its button: a short press waits for it.
const release = (tries) => {
  const stop = shown(".mic .stop-button");
  if (stop) stop.click();
  else if (tries) setTimeout(() => release(tries - 1), 100);
};

// A microphone that is denied or missing: Gradio shows nothing. The sentence stands under the composer.
const PROBLEMS = {
  NotAllowedError: "The microphone is blocked: allow it in the browser's address bar, or attach a recording.",
  NotFoundError: "There is no microphone: connect one, or attach a recording.",
  NotReadableError: "Another program uses the microphone: close it, or attach a recording.",
};
const say = (text) => document.querySelectorAll(".problem").forEach((place) => { place.textContent = text; });
const devices = navigator.mediaDevices;
if (devices) {
  const ask = devices.getUserMedia.bind(devices);
  devices.getUserMedia = async (constraints) => {
    try {
      const stream = await ask(constraints);
      say("");
      return stream;
    } catch (error) {
      say(PROBLEMS[error.name] || `The microphone does not work (${error.name}): attach a recording.`);
      throw error;
    }
  };
}
document.addEventListener("click", (event) => {
  if (!event.target.closest?.(".mic .record-button")) return;
  if (!devices) say("The browser lets only https pages use the microphone: open the page over https, or attach a recording.");
});

// The button that scrolls to the end. The conversation is a reversed column: its end is at 0, the past is negative.
document.addEventListener("scroll", (event) => {
  if (!event.target.matches?.("#chat .bubble-wrap")) return;
  const button = document.getElementById("to-end");
  if (button) button.hidden = event.target.scrollTop > -120;
}, true);
document.addEventListener("click", (event) => {
  // At once: a smooth scroll is broken off by each new word.
  if (event.target.closest?.("#to-end")) document.querySelector("#chat .bubble-wrap").scrollTop = 0;
});

// Send and Stop take each other's place, and a button that goes takes the keyboard's focus with it.
document.addEventListener("click", (event) => {
  const composer = event.target.closest?.(".composer :is(.send, .stop)")?.closest(".composer");
  if (composer && matchMedia("(hover: hover)").matches) composer.querySelector("textarea").focus();
});

// A list of models is searched by typing: what is typed replaces the name of the selected model.
document.addEventListener("click", (event) => {
  if (event.target.matches?.("input[role=combobox]")) event.target.select();
});

// Buttons that show an icon say their name under the mouse. Gradio's buttons have no titles.
document.addEventListener("pointerover", (event) => {
  const button = event.target.closest?.(".round");
  if (button) button.title = button.textContent.trim();
});

// The settings open at the side: the focus follows, and returns.
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#tune")) setTimeout(() => document.querySelector("#right .toggle-button")?.focus(), 350);
  else if (event.target.closest?.("#right .toggle-button")) document.getElementById("tune")?.focus();
});

// On a phone an open sidebar covers the page: a tap beside it closes it, and does nothing else.
document.addEventListener("click", (event) => {
  const tap = event.detail > 0;  // not a key, and not one of the clicks above
  const open = tap && innerWidth < 769 && document.querySelector(".sidebar.open .toggle-button");
  if (!open || event.target.closest?.(".sidebar")) return;
  event.preventDefault();
  event.stopPropagation();
  open.click();
}, true);

// Gradio 6.31 marks the examples as a list whose items are buttons. Screen readers need items, or a group.
new MutationObserver(() => {
  document.querySelector("#chat .examples[role=list]")?.setAttribute("role", "group");
}).observe(document, {childList: true, subtree: true});
