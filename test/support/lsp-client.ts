/** An editor: the built language server as a process, spoken to by the client of vscode-languageserver-protocol. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { onTestFinished, vi } from 'vitest';
import {
  type ClientCapabilities,
  createProtocolConnection,
  type InitializeParams,
  type InitializeResult,
  type InlineCompletionItem,
  type InlineCompletionList,
  type Position,
  type ProtocolConnection,
  StreamMessageReader,
  StreamMessageWriter,
  type TextDocumentContentChangeEvent,
} from 'vscode-languageserver-protocol/node';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { Status } from '../../services/lsp/status.ts';

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
/** For a process that starts on a machine that others use too. */
const SOON = { timeout: 120_000, interval: 10 };

/** What an editor with ghost text and progress says of itself. */
export const GHOST_TEXT: ClientCapabilities = {
  general: { positionEncodings: ['utf-16'] },
  window: { workDoneProgress: true },
  textDocument: { inlineCompletion: {} },
};

export interface EditorOptions {
  /** Flags after `llavacode lsp`. */
  readonly flags?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly initialize?: Partial<InitializeParams>;
}

export class Editor {
  readonly process: ChildProcessWithoutNullStreams;
  readonly connection: ProtocolConnection;
  readonly exit: Promise<number | null>;
  readonly statuses: Status[] = [];
  readonly logged: string[] = [];
  /** Kinds of `$/progress`, in their order, with what they say. */
  readonly progress: { kind: string; title?: string; percentage?: number }[] = [];
  /** What could not be read as messages: anything else on stdout. */
  readonly noise: string[] = [];
  initialized!: InitializeResult;
  #said = '';
  readonly #versions = new Map<string, number>();

  private constructor({ flags = [], env = {} }: EditorOptions) {
    this.process = spawn(process.execPath, [CLI, 'lsp', '--stdio', ...flags], { env: { ...process.env, ...env } });
    onTestFinished(() => void this.process.kill('SIGKILL'));
    this.exit = once(this.process, 'exit').then(([code]) => code as number | null);
    this.process.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
    const reader = new StreamMessageReader(this.process.stdout);
    reader.onError((error) => void this.noise.push(String(error)));
    this.connection = createProtocolConnection(reader, new StreamMessageWriter(this.process.stdin));
    this.connection.onNotification('llavacode/status', (status: Status) => void this.statuses.push(status));
    this.connection.onNotification('window/logMessage', ({ message }) => void this.logged.push(message));
    this.connection.onRequest('window/workDoneProgress/create', () => null);
    this.connection.onNotification('$/progress', ({ value }) => void this.progress.push(value));
    this.connection.onError(([error]) => void this.noise.push(String(error)));
    this.connection.listen();
  }

  /** Starts a language server; it ends with the test. */
  static async start(options: EditorOptions = {}): Promise<Editor> {
    const editor = new Editor(options);
    const params = { processId: process.pid, rootUri: null, capabilities: GHOST_TEXT, ...options.initialize };
    editor.initialized = await editor.connection.sendRequest('initialize', params);
    await editor.connection.sendNotification('initialized', {});
    return editor;
  }

  /** A process that is not spoken to yet. */
  static idle(options: EditorOptions = {}): Editor {
    return new Editor(options);
  }

  /** What it said on stderr so far. */
  get said(): string {
    return this.#said;
  }

  async open(uri: string, text: string, languageId = 'python'): Promise<void> {
    this.#versions.set(uri, 1);
    await this.connection.sendNotification('textDocument/didOpen', {
      textDocument: { uri, languageId, version: 1, text },
    });
  }

  async change(uri: string, contentChanges: readonly TextDocumentContentChangeEvent[]): Promise<void> {
    const version = (this.#versions.get(uri) ?? 0) + 1;
    this.#versions.set(uri, version);
    await this.connection.sendNotification('textDocument/didChange', {
      textDocument: { uri, version },
      contentChanges,
    });
  }

  /** The completion that is suggested at a position; undefined where none is. */
  async suggest(uri: string, position: Position, context: object = {}): Promise<InlineCompletionItem | undefined> {
    const params = { textDocument: { uri }, position, context: { triggerKind: 2, ...context } };
    const list: InlineCompletionList | null = await this.connection.sendRequest(
      'textDocument/inlineCompletion',
      params,
    );
    return list?.items[0];
  }

  /** Resolves with the first status that has this code, also one that came before. */
  async status(code: string): Promise<Status> {
    return vi.waitUntil(() => this.statuses.find((status) => status.code === code), SOON);
  }

  /** Ends it as editors do. @returns its exit code. */
  async quit(): Promise<number | null> {
    await this.connection.sendRequest('shutdown');
    await this.connection.sendNotification('exit');
    return this.exit;
  }
}
