/** The language server with the real system behind it: gateway, workers, indexer, and the model that ships. */
import { cp, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { SAMPLE_REPOSITORY } from '../../services/lib/process/package-root.ts';
import { SAMPLE } from '../../services/sample.ts';
import { Editor } from '../support/lsp-client.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let home: string;
let system: TestSystem;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'llavacode-lsp-system-'));
  const store = `lmdb:${join(home, 'store')}`;
  // A machine that is busy must not cost a completion its context, or its place.
  const gateway = { store, retrievalBudgetMs: 60_000, targetTtftMs: 240_000, connectTimeoutMs: 60_000 };
  system = await startTestSystem(
    TINY_CODER,
    { slots: 2 },
    { mode: 'colocated', decode: 0, gateway, indexer: { store } },
  );
});
afterAll(async () => {
  await system?.close();
  await rm(home, { recursive: true, force: true });
});

/** Events of completions with compressed context that the gateway has counted. */
async function countedEvents(): Promise<Record<string, number>> {
  const metrics = await (await fetch(`${system.url}/metrics`)).text();
  const lines = metrics.matchAll(/^llavacode:completion_events_total\{([^}]*)\} (\d+)$/gm);
  const events = [...lines].filter(([, labels]) => labels!.includes('mode="compressed"'));
  return Object.fromEntries(events.map(([, labels, value]) => [/event="(\w+)"/.exec(labels!)![1], Number(value)]));
}

it('a checkout is indexed when a file is opened, and completions have its chunks in their prompt', async () => {
  const root = join(home, 'work', 'shop');
  await cp(SAMPLE_REPOSITORY, root, { recursive: true });
  await mkdir(join(root, '.git'));
  const editor = await Editor.start({ flags: ['--url', system.url, '--completion-timeout-ms', '240000'] });
  const path = join(root, SAMPLE.path);
  const uri = pathToFileURL(path).href;
  const text = await readFile(path, 'utf8');
  await editor.open(uri, text);
  expect((await editor.status('indexed')).message).toMatch(/^shop is indexed: \d+ files, \d+ chunks$/);
  const lines = text.slice(0, text.indexOf(SAMPLE.before) + SAMPLE.before.length).split('\n');
  const at = { line: lines.length - 1, character: lines.at(-1)!.length };
  const end = { line: at.line, character: text.split('\n')[at.line]!.length };
  await editor.change(uri, [{ range: { start: at, end }, text: '' }]); // the rest of the line is to be written

  const item = await editor.suggest(uri, at);
  expect(item).toMatchObject({ range: { start: at, end: at } });
  expect(await editor.status('ok')).toMatchObject({ state: 'ready', repository: 'shop', chunks: 10 });

  const [typed, rest] = [(item!.insertText as string).slice(0, 2), (item!.insertText as string).slice(2)];
  await editor.change(uri, [{ range: { start: at, end: at }, text: typed }]);
  const next = await editor.suggest(uri, { line: at.line, character: at.character + 2 });
  expect(next?.insertText).toBe(rest);

  // What becomes of completions is counted by the gateway, by the mode of their context.
  await editor.connection.sendRequest('workspace/executeCommand', next!.command!);
  const other = pathToFileURL(join(root, 'other.py')).href;
  await editor.open(other, lines.join('\n'));
  expect(await editor.suggest(other, at)).toBeDefined();
  await editor.connection.sendNotification('textDocument/didClose', { textDocument: { uri: other } });
  expect(await editor.quit()).toBe(0);
  expect(await countedEvents()).toEqual({ view: 2, select: 1, dismiss: 1 });
  expect(editor.noise).toEqual([]);
  expect(editor.statuses.map(({ state }) => state)).toEqual(['indexing', 'ready', 'ready']);
});

it('an empty document has no completion, and the beginning of a document may have one', async () => {
  const editor = await Editor.start({ flags: ['--url', system.url, '--completion-timeout-ms', '240000'] });
  await editor.open('untitled:1', '');
  const at = { line: 0, character: 0 };
  expect(await editor.suggest('untitled:1', at)).toBeUndefined();
  expect(editor.statuses).toMatchObject([{ state: 'nothing', code: 'empty_document' }]);
  await editor.change('untitled:1', [{ text: '\n\nprint(total)\n' }]);
  await editor.suggest('untitled:1', at);
  // What the model says there, if anything, is its own affair.
  expect(editor.statuses[1]).toMatchObject({ state: 'ready', code: 'no_repository' });
  expect(editor.statuses.map(({ state }) => state)).not.toContain('failed');
});
