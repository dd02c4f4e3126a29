/** How values are written as JSON, in answers and in events alike. */

/**
 * Line ends of Unicode that JSON allows within a string. Clients that read lines as Unicode has them (httpx, requests,
 * Node 24's readline) would cut an event there.
 */
const LINE_ENDS = /[\u0085\u2028\u2029]/g;

/** A value as JSON on one line, whatever a reader takes for the end of a line. */
export function toJson(value: unknown): string {
  return JSON.stringify(value).replace(LINE_ENDS, (end) => `\\u${end.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
