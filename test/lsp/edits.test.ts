/**
 * Ten thousand random edits through the protocol: each completion goes where the cursor is. What the editor of this
 * test counts, it counts by itself.
 */
import fc from 'fast-check';
import { expect, it, vi } from 'vitest';
import type { Position, PositionEncodingKind } from 'vscode-languageserver-protocol/node';
import { completed, FakeCompletions } from '../support/fake-completions.ts';
import { Editor, GHOST_TEXT } from '../support/lsp-client.ts';

vi.setConfig({ testTimeout: 600_000 });

const RUNS = 34;
const EDITS = 100; // 3 encodings × 34 runs × 100 edits = 10,200

/** One edit: what lies between two places (shares of the document) becomes `text`; or what is shown is typed on. */
interface Edit {
  readonly from: number;
  readonly length: number;
  readonly text: string;
  readonly cursor: number;
  /** Characters of the last completion that are typed, where it was shown and is still the newest. */
  readonly typed: number;
}

const parts = fc.constantFrom('x', 'y = 1', ' ', 'ä', '€', '😀', '𝒳', '\n', '\r\n', '\r', 'def f():\n    ', '\t');
const edit: fc.Arbitrary<Edit> = fc.record({
  from: fc.double({ min: 0, max: 1, noNaN: true }),
  length: fc.nat(6),
  text: fc.array(parts, { maxLength: 3 }).map((words) => words.join('')),
  cursor: fc.double({ min: 0, max: 1, noNaN: true }),
  typed: fc.oneof(fc.constant(0), fc.constant(0), fc.integer({ min: 1, max: 3 })),
});

const WIDTH: Record<string, (text: string) => number> = {
  'utf-8': (text) => Buffer.byteLength(text),
  'utf-16': (text) => text.length,
  'utf-32': (text) => Array.from(text).length,
};

/** Whether an editor can put its cursor there: not within a character, nor within a line end. */
function isPlace(text: string, offset: number): boolean {
  const isWithinPair = /^[\udc00-\udfff]/.test(text.slice(offset)) && /[\ud800-\udbff]$/.test(text.slice(0, offset));
  return !isWithinPair && !(text[offset - 1] === '\r' && text[offset] === '\n');
}

/** The place at a share of the text, or the next one before it. */
function placeAt(text: string, share: number): number {
  let offset = Math.min(text.length, Math.floor(share * (text.length + 1)));
  while (!isPlace(text, offset)) offset--;
  return offset;
}

function positionOf(text: string, offset: number, encoding: string): Position {
  const lines = text.slice(0, offset).split(/\r\n|\r|\n/);
  return { line: lines.length - 1, character: WIDTH[encoding]!(lines.at(-1)!) };
}

const unix = (text: string) => text.replaceAll('\r\n', '\n');

async function check(editor: Editor, gateway: FakeCompletions, encoding: string, edits: readonly Edit[], uri: string) {
  let text = '';
  /** What was shown last, and where; undefined once an edit went elsewhere. */
  let shown: { readonly at: number; readonly rest: string } | undefined;
  await editor.open(uri, text);
  for (const { from, length, text: inserted, cursor: share, typed } of edits) {
    const types = typed > 0 && shown !== undefined && isPlace(shown.rest, typed);
    const start = types ? shown!.at : placeAt(text, from);
    let end = types ? start : Math.min(text.length, start + length);
    while (!isPlace(text, end)) end++;
    const put = types ? shown!.rest.slice(0, typed) : inserted;
    const range = { start: positionOf(text, start, encoding), end: positionOf(text, end, encoding) };
    await editor.change(uri, [{ range, text: put }]);
    text = text.slice(0, start) + put + text.slice(end);
    shown = undefined;
    if (text === '') continue; // nothing is asked for
    const cursor = types && isPlace(text, start + put.length) ? start + put.length : placeAt(text, share);
    const asked = gateway.asked.length;
    const position = positionOf(text, cursor, encoding);
    const item = await editor.suggest(uri, position);
    expect(item?.range).toEqual({ start: position, end: position });
    const insertion = item!.insertText as string;
    if (gateway.asked.length > asked) {
      const { prompt, suffix = '' } = gateway.asked.at(-1)!;
      expect([prompt, suffix]).toEqual([unix(text.slice(0, cursor)), unix(text.slice(cursor))]);
      const lineEnd = /\r\n|\n/.exec(text)?.[0] ?? '\n';
      expect(insertion).toBe(completionOf(asked + 1).replaceAll('\n', lineEnd));
    } else {
      // It was answered without a request: what is inserted completes what was shown.
      expect(seen.has(`${uri} ${JSON.stringify(text.slice(0, cursor) + insertion + text.slice(cursor))}`)).toBe(true);
    }
    seen.add(`${uri} ${JSON.stringify(text.slice(0, cursor) + insertion + text.slice(cursor))}`);
    shown = { at: cursor, rest: insertion };
  }
  await editor.connection.sendNotification('textDocument/didClose', { textDocument: { uri } });
}

/** Documents as they would be with each completion inserted. */
const seen = new Set<string>();

/** Each completion differs from all others. */
const completionOf = (count: number) => `d${count}(😀)\n  é`;

it.each<PositionEncodingKind>(['utf-8', 'utf-16', 'utf-32'])(
  'in %s no random edit moves a completion away',
  async (encoding) => {
    const gateway = await FakeCompletions.start((_, response) => {
      completed(response, `cmpl-${gateway.asked.length}`, completionOf(gateway.asked.length));
    });
    const initialize = { capabilities: { ...GHOST_TEXT, general: { positionEncodings: [encoding] } } };
    const editor = await Editor.start({ flags: ['--url', gateway.url], initialize });
    let runs = 0;
    const run = fc.asyncProperty(fc.array(edit, { minLength: EDITS, maxLength: EDITS }), (edits) =>
      check(editor, gateway, encoding, edits, `untitled:${++runs}`),
    );
    await fc.assert(run, { numRuns: RUNS, endOnFailure: true });
    const suggestions = RUNS * EDITS;
    expect(gateway.asked.length).toBeLessThan(suggestions); // some were typed through
    expect(gateway.asked.length).toBeGreaterThan(suggestions / 2);
    expect(editor.noise).toEqual([]);
    expect(await editor.quit()).toBe(0);
    expect(gateway.events.filter((event) => event.startsWith('view'))).toHaveLength(gateway.asked.length);
  },
);
