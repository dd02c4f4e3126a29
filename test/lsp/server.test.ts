/** `llavacode lsp` as editors run it: the built process, and a client of vscode-languageserver-protocol. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type CompletionList, LSPErrorCodes } from 'vscode-languageserver-protocol/node';
import { coded, completed, FakeCompletions } from '../support/fake-completions.ts';
import { json } from '../support/fake-http.ts';
import { Editor, GHOST_TEXT } from '../support/lsp-client.ts';

/** For processes that start on a machine that others use too. */
const SOON = { timeout: 120_000, interval: 10 };
vi.setConfig({ testTimeout: 180_000 });

let home: string;
let repository: string;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'llavacode-lsp-'));
  repository = join(home, 'shop');
  await mkdir(join(repository, '.git'), { recursive: true });
  await mkdir(join(repository, 'src'));
  await mkdir(join(home, 'loose'));
  await writeFile(join(repository, 'src', 'cart.py'), 'def total():\n    return 1\n');
});
afterAll(() => rm(home, { recursive: true, force: true }));

const inRepository = (path: string) => pathToFileURL(join(repository, path)).href;
const LOOSE = () => pathToFileURL(join(home, 'loose', 'a.py')).href;

/** An editor without a repository to follow, whose gateway completes with `text`. */
async function editorWith(text: string, flags: readonly string[] = []) {
  const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', text));
  const editor = await Editor.start({ flags: ['--url', gateway.url, '--follow-repository', 'false', ...flags] });
  return { gateway, editor };
}

describe('a completion', () => {
  it('a completion stands at the cursor, between what the gateway was sent as prompt and suffix', async () => {
    const { gateway, editor } = await editorWith('return 1\n');
    await editor.open(LOOSE(), 'def f():\n    \n\nf()\n');
    const item = await editor.suggest(LOOSE(), { line: 1, character: 4 });
    const at = { line: 1, character: 4 };
    expect(item).toMatchObject({ insertText: 'return 1', range: { start: at, end: at } });
    expect(gateway.asked[0]).toMatchObject({ prompt: 'def f():\n    ', suffix: '\n\nf()\n', stop_at: 'block' });
    expect(gateway.asked[0]).toMatchObject({ language: 'python', max_tokens: 128 });
    expect(gateway.asked[0]!.rag).toBeUndefined();
    expect(await editor.status('no_repository')).toMatchObject({ state: 'ready' });
    expect(await editor.quit()).toBe(0);
    expect(editor.noise).toEqual([]);
    expect(editor.said).toBe('');
  });

  it('a document of a repository is completed with its name, its path and the other unsaved documents', async () => {
    const { gateway, editor } = await editorWith('x', ['--completion-tokens', '32']);
    const [a, b, c] = ['src/a.py', 'src/b.py', 'src/c.py'].map(inRepository) as [string, string, string];
    for (const uri of [c, b, a]) await editor.open(uri, 'one\n');
    for (const uri of [c, b, a]) await editor.change(uri, [{ text: 'two\n' }]);
    await editor.open(LOOSE(), '');
    await editor.change(LOOSE(), [{ text: 'of no repository\n' }]);
    await editor.suggest(a, { line: 0, character: 3 });
    const files = [b, c].map((uri) => ({ path: uri === b ? 'src/b.py' : 'src/c.py', text: 'two\n' }));
    const rag = { repo: 'shop', mode: 'compressed', path: 'src/a.py', files };
    expect(gateway.asked[0]).toMatchObject({ prompt: 'two', max_tokens: 32, rag });
    expect(gateway.asked[0]).not.toHaveProperty('language');
    await editor.connection.sendNotification('textDocument/didSave', { textDocument: { uri: b } });
    await editor.suggest(a, { line: 0, character: 2 });
    expect(gateway.asked[1]!.rag!.files).toEqual(files.slice(1));
    expect(gateway.asked[1]!.session).toBe(gateway.asked[0]!.session);
  });

  it('in a document with CRLF the gateway reads LF, and the completion has CRLF, but for Neovim', async () => {
    const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'a\nb'));
    const texts: (string | undefined)[] = [];
    for (const name of ['Visual Studio Code', 'Neovim']) {
      const initialize = { clientInfo: { name } };
      const editor = await Editor.start({ flags: ['--url', gateway.url], initialize });
      await editor.open(LOOSE(), 'x\r\ny\r\n');
      texts.push((await editor.suggest(LOOSE(), { line: 1, character: 1 }))?.insertText as string);
    }
    expect(texts).toEqual(['a\r\nb', 'a\nb']);
    expect(gateway.asked.map(({ prompt, suffix }) => [prompt, suffix])).toEqual([
      ['x\ny', '\n'],
      ['x\ny', '\n'],
    ]);
  });

  it.each(['utf-8', 'utf-16', 'utf-32'])(
    'positions are counted in %s where the editor prefers it',
    async (encoding) => {
      const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', '!'));
      const general = { positionEncodings: ['utf-7', encoding, 'utf-16'] };
      const initialize = { capabilities: { ...GHOST_TEXT, general } };
      const editor = await Editor.start({ flags: ['--url', gateway.url], initialize });
      expect(editor.initialized.capabilities.positionEncoding).toBe(encoding);
      const character = { 'utf-8': 6, 'utf-16': 3, 'utf-32': 2 }[encoding]!;
      await editor.open(LOOSE(), 'ä😀z');
      expect(await editor.suggest(LOOSE(), { line: 0, character })).toMatchObject({
        range: { start: { line: 0, character } },
      });
      expect(gateway.asked[0]).toMatchObject({ prompt: 'ä😀', suffix: 'z' });
    },
  );

  it('the entry that is selected in a list of the editor is part of the prompt and of the completion', async () => {
    const { gateway, editor } = await editorWith('(1)');
    await editor.open(LOOSE(), 'x.le\n');
    const range = { start: { line: 0, character: 2 }, end: { line: 0, character: 4 } };
    const selectedCompletionInfo = { range, text: 'length' };
    const item = await editor.suggest(LOOSE(), range.end, { selectedCompletionInfo });
    expect(item).toMatchObject({ insertText: 'length(1)', range });
    expect(gateway.asked[0]).toMatchObject({ prompt: 'x.length', suffix: '\n' });
  });

  it('an editor that does not know ghost text gets an entry for its list of completions', async () => {
    const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'al(\n    1)'));
    const initialize = { capabilities: { general: { positionEncodings: ['utf-8' as const] } } };
    const editor = await Editor.start({ flags: ['--url', gateway.url], initialize });
    expect(editor.initialized.capabilities).toMatchObject({ completionProvider: {} });
    expect(editor.initialized.capabilities.inlineCompletionProvider).toBeUndefined();
    await editor.open(LOOSE(), 'é = tot');
    const position = { line: 0, character: 8 };
    const params = { textDocument: { uri: LOOSE() }, position };
    const list: CompletionList = await editor.connection.sendRequest('textDocument/completion', params);
    expect(list.items).toMatchObject([
      {
        filterText: 'total(',
        textEdit: { newText: 'total(\n    1)', range: { start: { line: 0, character: 5 }, end: position } },
      },
    ]);
  });
});

describe('while the user types', () => {
  it('what types the ghost text is answered at once, and a completion that was typed whole was taken', async () => {
    const { gateway, editor } = await editorWith('return 1');
    await editor.open(LOOSE(), 'def f(): ');
    await editor.suggest(LOOSE(), { line: 0, character: 9 });
    for (const [i, letter] of [...'return 1'].entries()) {
      const at = { line: 0, character: 9 + i };
      await editor.change(LOOSE(), [{ range: { start: at, end: at }, text: letter }]);
      if (i < 7) {
        const item = await editor.suggest(LOOSE(), { line: 0, character: 10 + i });
        expect(item?.insertText).toBe('return 1'.slice(i + 1));
      }
    }
    expect(gateway.asked).toHaveLength(1);
    await editor.quit();
    expect(gateway.events).toEqual(['view cmpl-1', 'select cmpl-1']);
  });

  it('what differs from the ghost text is asked for, and the completion counts as dismissed', async () => {
    let asked = 0;
    const gateway = await FakeCompletions.start((_, response) => completed(response, `cmpl-${++asked}`, 'abc'));
    const editor = await Editor.start({ flags: ['--url', gateway.url] });
    await editor.open(LOOSE(), 'w');
    await editor.suggest(LOOSE(), { line: 0, character: 1 });
    await editor.change(LOOSE(), [{ text: 'x' }]);
    await editor.suggest(LOOSE(), { line: 0, character: 1 });
    await editor.connection.sendRequest('workspace/executeCommand', {
      command: 'llavacode.accept',
      arguments: ['cmpl-2'],
    });
    await editor.change(LOOSE(), [{ text: 'xabc' }]);
    await editor.quit();
    expect(gateway.asked).toHaveLength(2);
    expect(gateway.events).toEqual(['view cmpl-1', 'dismiss cmpl-1', 'view cmpl-2', 'select cmpl-2']);
  });

  it('a document that is closed dismisses its completion', async () => {
    const { gateway, editor } = await editorWith('abc');
    await editor.open(LOOSE(), 'a');
    await editor.suggest(LOOSE(), { line: 0, character: 1 });
    await editor.connection.sendNotification('textDocument/didClose', { textDocument: { uri: LOOSE() } });
    await vi.waitUntil(() => gateway.events.length === 2, SOON);
    expect(gateway.events).toEqual(['view cmpl-1', 'dismiss cmpl-1']);
  });

  it('the latest keystroke wins: the request before it is hung up, and answered with nothing', async () => {
    let hungUp = 0;
    const gateway = await FakeCompletions.start(({ prompt }, response) => {
      if (prompt === 'ab') return completed(response, 'cmpl-2', 'c');
      response.once('close', () => hungUp++);
    });
    const editor = await Editor.start({ flags: ['--url', gateway.url] });
    await editor.open(LOOSE(), 'ab');
    const first = editor.suggest(LOOSE(), { line: 0, character: 1 });
    await vi.waitUntil(() => gateway.asked.length === 1, SOON);
    const second = editor.suggest(LOOSE(), { line: 0, character: 2 });
    expect(await first).toBeUndefined();
    expect((await second)?.insertText).toBe('c');
    await vi.waitUntil(() => hungUp === 1, SOON);
    const third = editor.suggest(LOOSE(), { line: 0, character: 0 });
    await vi.waitUntil(() => gateway.asked.length === 3, SOON);
    await editor.change(LOOSE(), [{ text: 'abx' }]);
    expect(await third).toBeUndefined();
    await vi.waitUntil(() => hungUp === 2, SOON);
    expect(editor.statuses.map(({ state }) => state)).toEqual(['ready']);
  });
});

it('an editor that dies while it waits for a completion ends the server, which has nothing to say of it', async () => {
  const pending: (() => void)[] = [];
  const gateway = await FakeCompletions.start(
    (_, response) => void pending.push(() => completed(response, 'cmpl-1', 'x')),
  );
  const editor = await Editor.start({ flags: ['--url', gateway.url, '--follow-repository', 'false'] });
  await editor.open(LOOSE(), 'a');
  editor.suggest(LOOSE(), { line: 0, character: 1 }).catch(() => {}); // nobody is there to hear the answer
  await vi.waitUntil(() => pending.length === 1, SOON);
  editor.process.stdout.destroy();
  pending[0]!();
  expect(await editor.exit).toBe(1);
  expect(editor.said).toBe('');
});

describe('where nothing comes, a status says why', () => {
  const failing: [name: string, code: string, complete: Parameters<typeof FakeCompletions.start>[0]][] = [
    ['a gateway that hangs up', 'address_unusable', (_, response) => void response.destroy()],
    [
      'a gateway that hangs up in the middle of its answer',
      'worker_lost',
      (_, response) => {
        response.writeHead(200, { 'content-length': '100' }).write('{"id":');
        setImmediate(() => response.destroy());
      },
    ],
    ['a wrong key', 'invalid_api_key', (_, response) => json(response, coded('invalid_api_key'), 401)],
    ['a server of another kind', 'address_unusable', (_, response) => void response.end('<html>')],
    ['a proxy without a gateway', 'address_unusable', (_, response) => void response.writeHead(502).end('Bad gateway')],
    ['a model without an idea', 'empty', (_, response) => completed(response, 'cmpl-1', ' \n')],
    ['a gateway without workers', 'no_worker', (_, response) => json(response, coded('no_worker'), 503)],
  ];
  it.each(failing)('%s is the status %s, and the next completion may come', async (_, code, complete) => {
    const gateway = await FakeCompletions.start(complete);
    const editor = await Editor.start({ flags: ['--url', gateway.url] });
    await editor.open(LOOSE(), 'a');
    expect(await editor.suggest(LOOSE(), { line: 0, character: 1 })).toBeUndefined();
    const { message } = await editor.status(code);
    expect(message).not.toMatch(/bug/i);
    expect(editor.logged).toContain(message);
    gateway.answerWith((_, response) => completed(response, 'cmpl-2', 'b'));
    expect((await editor.suggest(LOOSE(), { line: 0, character: 1 }))?.insertText).toBe('b');
    expect(editor.statuses.at(-1)).toMatchObject({ state: 'ready' });
    expect(await editor.quit()).toBe(0);
    expect(editor.noise).toEqual([]);
  });

  it('a server that is down is named with the remedy, and is used as soon as it is up', async () => {
    const down = await FakeCompletions.start(() => {});
    await down.stop();
    const editor = await Editor.start({ flags: ['--url', down.url] });
    await editor.open(LOOSE(), 'a');
    expect(await editor.suggest(LOOSE(), { line: 0, character: 1 })).toBeUndefined();
    expect((await editor.status('address_unusable')).message).toContain(`--url ${down.url}`);
    const port = Number(new URL(down.url).port);
    await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'b'), port);
    expect((await editor.suggest(LOOSE(), { line: 0, character: 1 }))?.insertText).toBe('b');
  });

  it('a gateway that is busy is not asked again before the time that it names', async () => {
    const gateway = await FakeCompletions.start((_, response) => {
      response.setHeader('retry-after', '600');
      json(response, coded('saturated'), 429);
    });
    const editor = await Editor.start({ flags: ['--url', gateway.url] });
    await editor.open(LOOSE(), 'ab');
    for (const character of [0, 1, 2]) {
      expect(await editor.suggest(LOOSE(), { line: 0, character })).toBeUndefined();
    }
    expect(await editor.status('saturated')).toMatchObject({ state: 'failed', retryAfterSeconds: 600 });
    expect(gateway.asked).toHaveLength(1);
  });

  it('a gateway that is silent costs --completion-timeout-ms', async () => {
    const gateway = await FakeCompletions.start(() => {});
    const editor = await Editor.start({ flags: ['--url', gateway.url, '--completion-timeout-ms', '50'] });
    await editor.open(LOOSE(), 'a');
    expect(await editor.suggest(LOOSE(), { line: 0, character: 1 })).toBeUndefined();
    const { message } = await editor.status('deadline_exceeded');
    expect(message).toMatch(/--completion-timeout-ms = 50\. Retry, or raise the limit that the message names/);
  });

  it('an unknown repository is completed without context, and the status says so', async () => {
    const gateway = await FakeCompletions.start(({ rag }, response) =>
      rag ? json(response, coded('repo_not_found'), 404) : completed(response, 'cmpl-1', 'b'),
    );
    const editor = await Editor.start({ flags: ['--url', gateway.url, '--follow-repository', 'false'] });
    await editor.open(inRepository('src/cart.py'), 'a');
    expect((await editor.suggest(inRepository('src/cart.py'), { line: 0, character: 1 }))?.insertText).toBe('b');
    expect(await editor.status('repo_not_found')).toMatchObject({ state: 'ready', chunks: 0, repository: 'shop' });
  });

  it('a document that is not open has no completion', async () => {
    const { editor } = await editorWith('b');
    expect(await editor.suggest('file:///elsewhere.py', { line: 0, character: 0 })).toBeUndefined();
    expect(await editor.status('not_open')).toMatchObject({ state: 'nothing' });
  });

  it('a gateway that does not know the newer fields is asked without them, and without events', async () => {
    const known = new Set(['prompt', 'suffix', 'max_tokens', 'temperature', 'session', 'timeout_ms', 'stop', 'rag']);
    const gateway = await FakeCompletions.start((asked, response) => {
      const unknown = Object.keys(asked).filter((field) => !known.has(field));
      if (asked.rag?.files) unknown.push('rag.files');
      if (unknown.length === 0) return completed(response, 'cmpl-1', 'b');
      const message = unknown.map((field) => `${field}: is not a field of this request`).join('; ');
      json(response, coded('invalid_request', message), 400);
    });
    const editor = await Editor.start({ flags: ['--url', gateway.url, '--follow-repository', 'false'] });
    const [a, b] = [inRepository('a.py'), inRepository('b.py')];
    for (const uri of [a, b]) await editor.open(uri, 'one');
    await editor.change(b, [{ text: 'two' }]);
    for (const character of [1, 2]) {
      expect((await editor.suggest(a, { line: 0, character }))?.insertText).toBe('b');
    }
    expect(gateway.asked).toHaveLength(3);
    expect(gateway.asked[2]).toMatchObject({ stop: ['\n\n'], rag: { repo: 'shop', path: 'a.py' } });
    expect(editor.logged.join()).toContain('stop_at, rag.files');
  });
});

describe('the repository of an open document', () => {
  it('the repository is indexed when its first document is opened, and the editor shows the progress', async () => {
    const gateway = await FakeCompletions.start((_, response) =>
      completed(response, 'cmpl-1', 'b', { mode: 'compressed', chunks: [{}, {}] }),
    );
    const editor = await Editor.start({ flags: ['--url', gateway.url, '--repo', 'acme/shop'] });
    await editor.open(inRepository('src/cart.py'), 'a');
    await editor.open(inRepository('src/other.py'), 'a');
    expect((await editor.status('indexed')).message).toBe('acme/shop is indexed: 2 files, 5 chunks');
    expect(gateway.indexed).toEqual(['acme%2Fshop']);
    await vi.waitUntil(() => editor.progress.at(-1)?.kind === 'end', SOON);
    expect(editor.progress[0]).toMatchObject({ kind: 'begin', title: 'Indexing acme/shop' });
    const percentages = editor.progress.flatMap(({ percentage = [] }) => percentage);
    expect(percentages).toEqual(percentages.toSorted((x, y) => x - y));
    await editor.suggest(inRepository('src/cart.py'), { line: 0, character: 1 });
    expect(await editor.status('ok')).toMatchObject({ state: 'ready', chunks: 2, repository: 'acme/shop' });
    await writeFile(join(repository, 'src', 'new.py'), 'x = 1\n');
    await vi.waitUntil(() => gateway.indexed.length === 2, SOON);
  });

  it('a repository that could not be indexed because the gateway was down is when a completion comes', async () => {
    const down = await FakeCompletions.start(() => {});
    await down.stop();
    const editor = await Editor.start({ flags: ['--url', down.url] });
    await editor.open(inRepository('src/cart.py'), 'a');
    await editor.status('address_unusable');
    const port = Number(new URL(down.url).port);
    const up = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'b'), port);
    await editor.suggest(inRepository('src/cart.py'), { line: 0, character: 1 });
    await vi.waitUntil(() => up.indexed.length === 1, SOON);
    await editor.status('indexed');
  });

  it('a gateway that is lost while it is sent a repository ends that run alone, which is made again', async () => {
    const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'b'));
    gateway.uploadsToLose = 1;
    const editor = await Editor.start({ flags: ['--url', gateway.url] });
    await editor.open(inRepository('src/cart.py'), 'a');
    await editor.status('worker_lost');
    await editor.status('indexed');
    expect(gateway.indexed).toEqual(['shop']);
  });

  it('the checkout of a whole home is not indexed by itself', async () => {
    const { gateway, editor } = await editorWith('b');
    await editor.quit();
    const atHome = await Editor.start({ flags: ['--url', gateway.url], env: { HOME: repository } });
    await atHome.open(inRepository('src/cart.py'), 'a');
    expect((await atHome.status('too_wide')).message).toContain('llavacode index --path DIR');
    await atHome.suggest(inRepository('src/cart.py'), { line: 0, character: 1 });
    expect(gateway.indexed).toEqual([]);
  });
});

describe('settings and life', () => {
  it('the editor may send settings, and flags win over them', async () => {
    const gateway = await FakeCompletions.start((_, response) => completed(response, 'cmpl-1', 'b'));
    const key = join(home, 'key');
    await writeFile(key, 'of-a-file\n');
    const initializationOptions = {
      url: gateway.url,
      'api-key-file': key,
      'completion-tokens': 7,
      'rag-mode': 'off',
      repo: null,
    };
    const editor = await Editor.start({
      flags: ['--completion-tokens', '9'],
      initialize: { initializationOptions },
    });
    await editor.open(inRepository('src/cart.py'), 'a');
    await editor.suggest(inRepository('src/cart.py'), { line: 0, character: 1 });
    expect(gateway.asked[0]).toMatchObject({ max_tokens: 9, language: 'python' });
    expect(gateway.asked[0]).not.toHaveProperty('rag');
    expect([...gateway.keys]).toEqual(['Bearer of-a-file']);
  });

  it('settings of the editor that are wrong are refused with all problems, and the process lives on', async () => {
    const editor = Editor.idle();
    const initialize = (initializationOptions: object) =>
      editor.connection.sendRequest('initialize', {
        processId: null,
        rootUri: null,
        capabilities: GHOST_TEXT,
        initializationOptions,
      });
    const refused = await initialize({ 'api-kye': 'x', url: 'nowhere' }).catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: LSPErrorCodes.RequestFailed, data: { retry: false } });
    expect(String(refused)).toContain('api-kye is not a setting; did you mean api-key?');
    expect(String(refused)).toContain('url: must be http://host:port');
    expect(await initialize({})).toMatchObject({ capabilities: { inlineCompletionProvider: true } });
  });

  it('a wrong flag ends the process before it serves, with a message on stderr and none on stdout', async () => {
    const editor = Editor.idle({ flags: ['--completion-tokens', '0'] });
    expect(await editor.exit).toBe(78);
    expect(editor.said).toContain('--completion-tokens');
    expect(editor.noise).toEqual([]);
  });

  it('the process ends with its editor, and on a signal', async () => {
    const left = await Editor.start();
    left.process.stdin.end();
    expect(await left.exit).toBe(1); // without shutdown, as the protocol says
    const stopped = await Editor.start();
    stopped.process.kill('SIGTERM');
    expect(await stopped.exit).toBe(143);
  });
});
