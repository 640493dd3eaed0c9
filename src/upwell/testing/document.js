// A document small enough to read, so that Node can run the script of a page: the elements that have an id, and
// what scripts make. No layout, no selectors, no security policy: that is what a browser is for.
"use strict";
const vm = require("node:vm");

class Element {
  constructor(name, id = "", value = "") {
    Object.assign(this, { tagName: name.toUpperCase(), id, value, className: "", children: [], parent: null });
    Object.assign(this, { own: "", listeners: {} });
  }

  get textContent() { return this.own + this.children.map((child) => child.textContent).join(""); }
  set textContent(text) { this.replaceChildren(); this.own = text; }

  append(...added) {
    for (const child of added) {
      child.remove();
      child.parent = this;
      this.children.push(child);
    }
  }

  replaceChildren(...added) {
    for (const child of [...this.children]) child.remove();
    this.own = "";
    this.append(...added);
  }

  replaceWith(other) {
    other.remove();
    other.parent = this.parent;
    this.parent.children[this.parent.children.indexOf(this)] = other;
    this.parent = null;
  }

  remove() {
    this.parent?.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }

  addEventListener(kind, listener) { (this.listeners[kind] ??= []).push(listener); }
  dispatch(kind) { for (const listener of this.listeners[kind] ?? []) listener({ type: kind, preventDefault() {} }); }
  requestSubmit() { this.dispatch("submit"); }
  click() { this.dispatch("click"); }
}

async function load(url) {
  const page = await (await fetch(url)).text();
  const [markup, script] = [page.slice(0, page.indexOf("<script>")), /<script>(.*?)<\/script>/s.exec(page)[1]];
  const elements = new Map();
  for (const [, name, attributes, text] of markup.matchAll(/<(\w+)([^>]*)>([^<]*)/g)) {
    const id = /\bid="([^"]*)"/.exec(attributes)?.[1];
    const value = /\bvalue="([^"]*)"/.exec(attributes)?.[1] ?? (name === "textarea" ? text : "");
    if (id) elements.set(id, new Element(name, id, value));
  }
  globalThis.location = new URL(url);
  globalThis.document = {
    readyState: "loading",
    getElementById: (id) => elements.get(id) ?? null,
    createElement: (name) => new Element(name),
  };
  vm.runInThisContext(script, { filename: url });
  document.readyState = "complete";
}

load(process.argv[2]);
setInterval(() => {}, 1 << 30); // Stay until the test is done.
