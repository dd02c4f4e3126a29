/** Commands in a real terminal: Ctrl-C ends each of them at every stage, and a terminal of any width is enough. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { CTRL_C, inTerminal } from '../support/terminal.ts';

const MODEL = join(PACKAGE_ROOT, 'models', 'tiny-coder');
const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');
/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;

let dir: string;
/** URL of a server that answers nothing. */
let silent: string;
let onSuiteEnd: (() => void) | undefined;
beforeAll(async () => {
  const server = createServer();
  await once(server.listen(0, '127.0.0.1'), 'listening');
  silent = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  onSuiteEnd = () => void server.close().closeAllConnections();
  dir = await mkdtemp(join(tmpdir(), 'llavacode-terminal-'));
  await exportBundle({ llm: MODEL, to: join(dir, 'bundle'), precision: 'fp32' });
});
afterAll(async () => {
  onSuiteEnd?.();
  await rm(dir, { recursive: true, force: true });
});

/** Command lines of the processes that work in our folder. */
async function processes(): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const read = (pid: string, file: string) => readFile(join('/proc', pid, file), 'latin1').catch(() => '');
  const found = await Promise.all(
    pids.map(async (pid) => [await read(pid, 'cmdline'), await read(pid, 'environ')].join(' ')),
  );
  return found.filter((text) => text.includes('cli.js') && text.includes(dir));
}
const nothingLeft = () => vi.waitUntil(async () => (await processes()).length === 0, { timeout: LIMIT, interval: 50 });

const bundle = () => join(dir, 'bundle');
const up = () => ['up', '--port', '0', '--data', join(dir, 'data'), '--model', bundle(), '--index', SHOP];

describe('Ctrl-C', () => {
  // The first text of a command is drawn at once; one that follows soon may never be.
  const stages: [stage: string, words: () => string[]][] = [
    ['preparing the model', up],
    ['starting gateway', up],
    ['indexing', up],
    ['preparing the model', () => ['demo']],
    ['asking', () => ['index', '--path', SHOP, '--url', silent]],
    ['Ctrl-C stops it', up],
    [
      'loading the encoder',
      () => ['index', '--name', 'r', '--path', SHOP, '--model', bundle(), '--store', `lmdb:${dir}/s`],
    ],
    [
      'chunks (', // indexed, and watching
      () => ['index', '--name', 'r', '--path', SHOP, '--model', bundle(), '--store', `lmdb:${dir}/s`, '--watch'],
    ],
    ['exporting', () => ['export', '--llm', MODEL, '--to', join(dir, 'exported')]],
    ['exporting', () => ['synth', '--llm', 'qwen2.5-coder-0.5b', '--to', join(dir, 'synthesized')]],
  ];
  test.each(stages)(
    'Ctrl-C while a command shows "%s" ends it and leaves no process',
    { timeout: LIMIT },
    async (stage, words) => {
      const terminal = inTerminal(words());
      await terminal.shows(stage);
      terminal.press(CTRL_C);
      // A service that stops when it is told to has done what was asked of it.
      expect([0, 130]).toContain(await terminal.exited());
      await nothingLeft();
    },
  );
});

test('SIGINT ends a command without a terminal, with the exit code of a shell', { timeout: LIMIT }, async () => {
  const words = [join(PACKAGE_ROOT, 'dist', 'services', 'cli.js'), 'index', '--path', SHOP, '--url', silent];
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'ignore', 'pipe'] });
  await once(child.stderr, 'data'); // "- asking …"
  child.kill('SIGINT');
  expect(await once(child, 'exit')).toEqual([130, null]);
});

test('the whole system ends when the npm that started it is killed', { timeout: LIMIT }, async () => {
  const words = [process.execPath, join(PACKAGE_ROOT, 'dist', 'services', 'cli.js'), ...up()];
  const start = words.map((word) => `'${word}'`).join(' ');
  await writeFile(join(dir, 'package.json'), JSON.stringify({ scripts: { start } }));
  const npm = spawn('npm', ['start'], { cwd: dir, stdio: ['ignore', 'pipe', 'ignore'] });
  let said = '';
  for await (const text of npm.stdout) {
    said += text;
    if (said.includes('Ctrl-C stops it')) break;
  }
  expect(said).toContain('Ctrl-C stops it');
  expect((await processes()).length).toBeGreaterThan(3);
  npm.kill('SIGKILL');
  await nothingLeft();
});

describe('a terminal', () => {
  test.each([0, 20, 200])('a terminal of %i columns is enough for up', { timeout: LIMIT }, async (columns) => {
    const terminal = inTerminal(up(), { columns });
    await terminal.shows('Ctrl-C stops it');
    terminal.press(CTRL_C);
    expect(await terminal.exited()).toBe(0);
    await nothingLeft();
  });

  test.each([
    ['NO_COLOR', { NO_COLOR: '1' }],
    ['TERM=dumb', { TERM: 'dumb' }],
  ])('a terminal with %s gets plain lines without control sequences', { timeout: LIMIT }, async (_, env) => {
    const words = ['index', '--name', 'plain', '--path', SHOP, '--model', bundle(), '--store', `lmdb:${dir}/plain`];
    const terminal = inTerminal(words, { env });
    expect(await terminal.exited()).toBe(0);
    expect(terminal.output).toContain('- opening the model');
    expect(terminal.output).toMatch(/✔ plain: \d+ chunks/);
    expect(terminal.output).not.toContain('\x1b');
  });
});
