// The conversations of this browser: one entry of localStorage for each, as plain JSON.
//
// gr.BrowserState cannot keep them. It has one entry for all, so that the last of two tabs that write wins; each event
// that uses it sends all of it; a full storage loses what is written without a word; and the page does not start where
// the storage is forbidden. Here an entry is a conversation, and every call returns a report with what went wrong.
window.conversations = (() => {
  const ENTRY = "lab-conversation:", SHOWN = "lab-shown-conversation", LISTED = 200;
  let shown = null;  // id and revision of the conversation in this tab, as this tab last read or wrote it
  let removed = null;  // what `restore` brings back
  let turn = 0;  // counts how often this tab has shown another conversation
  let drawn = 0;  // the turn whose conversation the page has drawn: until then it holds the one before

  const newId = () => Date.now().toString(36) + "-" + Math.random().toString(36).slice(2);
  const entries = () => Object.keys(localStorage).filter((key) => key.startsWith(ENTRY));
  const sizeOf = (key) => key.length + (localStorage.getItem(key) ?? "").length;
  const used = () => entries().reduce((sum, key) => sum + sizeOf(key), 0);
  const read = (id) => {
    try {
      const record = JSON.parse(localStorage.getItem(ENTRY + id));
      return record && typeof record === "object" ? {...record, id} : null;
    } catch (error) {
      if (error instanceof SyntaxError) return null;
      throw error;
    }
  };
  const write = (records) => {  // all of them or none
    const pairs = records.map((record) => [ENTRY + record.id, JSON.stringify(record)]);
    const more = pairs.reduce((sum, [key, text]) => sum + key.length + text.length - sizeOf(key), 0);
    if (used() + more > MAX_KEPT) throw new DOMException("", "QuotaExceededError");
    const before = pairs.map(([key]) => [key, localStorage.getItem(key)]);
    try {
      pairs.forEach(([key, text]) => localStorage.setItem(key, text));
    } catch (error) {
      before.forEach(([key, text]) => text === null ? localStorage.removeItem(key) : localStorage.setItem(key, text));
      throw error;
    }
  };
  const show = (record, atTurn = turn + 1) => {
    turn = atTurn;
    shown = record && {id: record.id, revision: record.revision};
    try {
      record ? sessionStorage.setItem(SHOWN, record.id) : sessionStorage.removeItem(SHOWN);
    } catch {}  // a reload then starts a new conversation
  };
  const matches = (record, query) => {
    const texts = [record.title, ...record.messages.map((message) => message?.content)];
    return texts.some((text) => String(text).toLowerCase().includes(query));
  };
  const matching = (query) => entries().map((key) => read(key.slice(ENTRY.length)))
    .filter((record) => Array.isArray(record?.messages) && (!query || matches(record, query)))
    .sort((one, other) => other.changed - one.changed);

  // Does something and returns what the sidebar shows afterwards, see `Report` in report.py. `act` returns a conversation
  // to show, or true if an empty one is to be shown.
  const report = (query, act = () => null) => {
    const result = {
      problem: "", used: 0, shown: null, conversation: null, empty: false, listed: [], found: 0, removed: false,
    };
    try {
      const next = act();
      if (next === true) result.empty = true;
      else result.conversation = next ?? null;
    } catch (error) {
      result.problem = error.name === "QuotaExceededError" ? "full" : "forbidden";
    }
    try {
      const found = matching((query ?? "").trim().toLowerCase());
      result.listed = found.slice(0, LISTED).map(({id, title, model, changed}) => ({id, title, model, changed}));
      Object.assign(result, {used: used(), found: found.length, shown: shown?.id ?? null, removed: removed !== null});
    } catch {
      result.problem = "forbidden";
    }
    return [result, query];
  };

  const download = ({name, text, type}) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  const open = (id) => {
    const record = read(id);
    show(record);
    return record;
  };

  // On a phone the list covers the conversation.
  const uncover = () => innerWidth < 769 && document.querySelector("#left.open .toggle-button")?.click();

  // Other tabs write, too: the button asks for the list again.
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(ENTRY)) document.querySelector("#conversations-changed")?.click();
  });

  // The conversation in this tab. If another tab has changed it meanwhile, both versions are kept. A draft of the
  // conversation before this one is late: an answer ends when another conversation is opened, which has saved it.
  const save = (sent) => {
    if (sent?.turn !== turn) return;
    const {turn: _, ...draft} = sent;
    const stored = shown && read(shown.id);
    const same = !stored || stored.revision === shown.revision;
    if (stored && same && JSON.stringify(stored.messages) === JSON.stringify(draft.messages)) return;
    const record = {
      ...draft, id: shown && same ? shown.id : newId(), title: stored?.title ?? draft.title, changed: Date.now(),
      revision: newId(),
    };
    write([record]);
    show(record, turn);
  };
  // What is stored already stays as it is; another version of it is kept beside it.
  const add = (records) => write(records.filter((record) => {
    const stored = read(record.id);
    if (stored && stored.revision !== record.revision) record.id = newId();
    return stored?.revision !== record.revision;
  }));

  // A link that is opened in this tab: the page reads it when it starts.
  addEventListener("hashchange", () => {
    if (location.hash.includes("question=")) location.reload();
  });

  return {
    list: (query) => report(query),
    start: (query) => report(query, () => {
      const id = sessionStorage.getItem(SHOWN);
      return id && !location.hash.includes("question=") ? open(id) : null;
    }),
    save: (query, draft) => report(query, () => save(draft)),
    open: (query, id, draft) => report(query, () => {
      uncover();
      save(draft);
      return open(id);
    }),
    leave: (query, draft) => report(query, () => {
      uncover();
      save(draft);
      show(null);
      return true;
    }),
    rename: (query, id, title) => report(query, () => {
      const record = read(id);
      const words = [...title.trim()].slice(0, LONGEST_TITLE).join("");
      if (record && words) write([{...record, title: words}]);
    }),
    remove: (query, id) => report(query, () => {
      removed = read(id) ?? removed;
      localStorage.removeItem(ENTRY + id);
      if (shown?.id !== id) return;
      show(null);
      return true;
    }),
    restore: (query, draft) => report(query, () => {
      if (!removed) return;
      save(draft);
      write([removed]);
      const id = removed.id;
      removed = null;
      return open(id);
    }),
    add: (query, records) => report(query, () => add(records ?? [])),
    export: (query) => report(query, () => {
      const exported = {format: FORMAT, conversations: matching((query ?? "").trim().toLowerCase())};
      download({name: "conversations.json", text: JSON.stringify(exported), type: "application/json"});
    }),
    turn: () => drawn === turn ? turn : null,  // of the conversation that the page holds
    isDrawn: () => {drawn = turn;},
    titleOf: (id) => id ? read(id)?.title ?? "" : "",
    download,
  };
})();
