import { h } from "./dom.js";
export class ServerView { constructor(r) { this.r = r; } start() {} stop() {} }
