/**
 * The language server: LSP 3.18 on two streams. It answers `textDocument/inlineCompletion`, and where an editor does
 * not know that, `textDocument/completion`. The only importer of vscode-languageserver.
 */
import {
  type CancellationToken,
  type CompletionItem,
  CompletionItemKind,
  type CompletionList,
  type CompletionParams,
  type Connection,
  createConnection,
  DidSaveTextDocumentNotification,
  type InitializeParams,
  type InitializeResult,
  type InlineCompletionItem,
  type InlineCompletionParams,
  InlineCompletionTriggerKind,
  InsertTextMode,
  LSPErrorCodes,
  MessageType,
  ResponseError,
  TextDocumentSyncKind,
  type WorkDoneProgressReporter,
} from 'vscode-languageserver/node';
import { ServingError } from '../lib/process/errors.ts';
import { Documents, type OpenDocument, pathIn } from './documents.ts';
import { Following } from './following.ts';
import { GhostText } from './ghost-text.ts';
import {
  type CompletionAnswer,
  type CompletionSystem,
  type IndexRun,
  insertionOf,
  promptOf,
  suffixOf,
} from './query.ts';
import { gitRoot, type Repository } from './repository.ts';
import { reasonInWords, STATUS_METHOD, type Status, StatusLine } from './status.ts';
import { POSITION_ENCODINGS, type Position, type PositionEncoding, type Range } from './text-buffer.ts';

/** The command by which an editor says that a completion was taken; its argument is the completion's id. */
const ACCEPT_COMMAND = 'llavacode.accept';

export interface LspParts {
  readonly input: NodeJS.ReadableStream;
  /** Nothing else may write there. */
  readonly output: NodeJS.WritableStream;
  readonly version: string;
  /**
   * Opens the system that completes, with the settings that the editor sends (`initializationOptions`).
   * @param note writes a line into the editor's log.
   * @throws ServingError config_invalid, path_unusable.
   */
  readonly open: (initializationOptions: unknown, note: (text: string) => void) => Promise<CompletionSystem>;
  /** Ends the server. */
  readonly signal: AbortSignal;
}

/** What there is once the editor has introduced itself. */
interface Session {
  readonly system: CompletionSystem;
  readonly documents: Documents;
  readonly ghosts: GhostText;
  readonly following: Following;
  /** Whether the editor wants line ends as '\n' whatever the document has. */
  readonly wantsUnixLineEnds: boolean;
}

/** A completion, and where it goes. */
interface Suggestion {
  readonly id: string;
  readonly text: string;
  readonly range: Range;
}

const LOG_TYPE: Readonly<Record<Status['state'], MessageType>> = {
  ready: MessageType.Log,
  indexing: MessageType.Info,
  nothing: MessageType.Info,
  failed: MessageType.Warning,
};

/** Serves one editor; the process ends with it. */
export function serveEditor(parts: LspParts): void {
  new LanguageServer(parts).listen();
}

class LanguageServer {
  readonly #parts: LspParts;
  readonly #connection: Connection;
  readonly #status: StatusLine;
  #session: Session | undefined;
  /** Ends the completion that is being asked for: the latest keystroke wins. */
  #inFlight: AbortController | undefined;
  /** Until then the gateway is not asked again, as it has wished; a time of this process's clock, in ms. */
  #quietUntilMs = 0;

  constructor(parts: LspParts) {
    this.#parts = parts;
    this.#connection = createConnection(parts.input, parts.output);
    this.#status = new StatusLine((status) => {
      this.#notify(STATUS_METHOD, status);
      this.#log(LOG_TYPE[status.state], status.message);
    });
  }

  listen(): void {
    const connection = this.#connection;
    connection.onInitialize((params) => this.#initialize(params));
    connection.onShutdown(() => this.#shutdown());
    connection.onDidOpenTextDocument(({ textDocument: { uri, languageId, text } }) => {
      this.#opened(this.#session?.documents.open(uri, languageId, text));
    });
    connection.onDidChangeTextDocument(({ textDocument: { uri }, contentChanges }) => {
      this.#inFlight?.abort();
      const document = this.#session?.documents.change(uri, contentChanges);
      if (document) this.#session?.ghosts.changed(uri, document.buffer.text);
    });
    connection.onNotification(DidSaveTextDocumentNotification.type, ({ textDocument: { uri } }) => {
      this.#session?.documents.saved(uri);
    });
    connection.onDidCloseTextDocument(({ textDocument: { uri } }) => {
      this.#session?.ghosts.dismiss(uri);
      this.#session?.documents.close(uri);
    });
    connection.languages.inlineCompletion.on(async (params, token) => {
      const suggestion = await this.#suggest(params, token);
      return suggestion && { items: [inlineItem(suggestion)] };
    });
    connection.onCompletion((params, token) => this.#completionList(params, token));
    connection.onExecuteCommand(({ command, arguments: [id] = [] }) => {
      if (command === ACCEPT_COMMAND && typeof id === 'string') this.#session?.ghosts.selected(id);
      return null;
    });
    const end = () => {
      this.#inFlight?.abort();
      connection.dispose();
    };
    this.#parts.signal.addEventListener('abort', end, { once: true });
    connection.listen();
  }

  async #initialize(params: InitializeParams): Promise<InitializeResult | ResponseError<{ retry: boolean }>> {
    const { capabilities, clientInfo, initializationOptions } = params;
    let system: CompletionSystem;
    try {
      system = await this.#parts.open(initializationOptions, (text) => this.#log(MessageType.Info, text));
    } catch (error) {
      const { code, message } = ServingError.from(error);
      return new ResponseError(LSPErrorCodes.RequestFailed, `llavacode: ${code}: ${message}`, { retry: false });
    }
    const encoding = encodingOf(capabilities.general?.positionEncodings);
    const repositoryOf = async (path: string): Promise<Repository | undefined> => {
      const root = await gitRoot(path);
      return root === undefined ? undefined : { root, name: system.nameOf(root) };
    };
    this.#session = {
      system,
      documents: new Documents(encoding, repositoryOf),
      ghosts: new GhostText((id, outcome) => system.report(id, outcome)),
      following: new Following({
        follow: system.follow,
        status: this.#status,
        progress: (title) => this.#progress(title),
        signal: this.#parts.signal,
      }),
      // It splits a completion at '\n', and would keep '\r' as a character of the line.
      wantsUnixLineEnds: clientInfo?.name === 'Neovim',
    };
    const knowsInline = capabilities.textDocument?.inlineCompletion !== undefined;
    return {
      serverInfo: { name: 'llavacode', version: this.#parts.version },
      capabilities: {
        positionEncoding: encoding,
        textDocumentSync: { openClose: true, change: TextDocumentSyncKind.Incremental, save: true },
        executeCommandProvider: { commands: [ACCEPT_COMMAND] },
        ...(knowsInline ? { inlineCompletionProvider: true } : { completionProvider: { triggerCharacters: TRIGGERS } }),
      },
    };
  }

  async #shutdown(): Promise<void> {
    this.#inFlight?.abort();
    this.#session?.ghosts.dismiss();
    await this.#session?.system.reported();
  }

  async #opened(document: OpenDocument | undefined): Promise<void> {
    const repository = await document?.repository;
    if (repository !== undefined) this.#session?.following.opened(repository);
  }

  /** @returns undefined where there is nothing to suggest; the status says why, unless a later keystroke came. */
  async #suggest(params: InlineCompletionParams, token: CancellationToken): Promise<Suggestion | undefined> {
    this.#inFlight?.abort();
    const session = this.#session;
    const document = session?.documents.get(params.textDocument.uri);
    if (session === undefined || document === undefined) {
      const message = `${params.textDocument.uri} is not open here, so that its text is not known`;
      this.#status.set({ state: 'nothing', code: 'not_open', message });
      return undefined;
    }
    const place = placeOf(document, params);
    const lineEnd = document.buffer.lineEnd;
    const shown = (id: string, text: string): Suggestion => ({
      id,
      text: place.begun + (session.wantsUnixLineEnds ? text.replaceAll('\r\n', '\n') : text),
      range: place.range,
    });
    const rest = session.ghosts.rest(document.uri, place.before, place.behind);
    if (rest) return shown(rest.id, rest.text);
    session.ghosts.dismiss();
    if (place.before === '' && place.behind === '') {
      const message = 'the document is empty, so that there is nothing to go on from';
      this.#status.set({ state: 'nothing', code: 'empty_document', message });
      return undefined;
    }
    const answer = await this.#ask(session, document, place, token);
    if (answer === undefined) return undefined;
    const text = insertionOf(answer.text, lineEnd);
    if (text === '') {
      const message = 'the model has nothing to add here';
      this.#status.set({ state: 'nothing', code: 'empty', message });
      return undefined;
    }
    const { before, behind } = place;
    session.ghosts.show({ id: answer.id, uri: document.uri, before, behind, text });
    return shown(answer.id, text);
  }

  /** @returns undefined if the gateway does not answer, does not want to be asked, or a later keystroke came. */
  async #ask(
    session: Session,
    document: OpenDocument,
    { before, behind }: Place,
    token: CancellationToken,
  ): Promise<CompletionAnswer | undefined> {
    const later = new AbortController();
    const { signal } = later;
    this.#inFlight = later;
    const onCancel = token.onCancellationRequested(() => later.abort());
    let repository: Repository | undefined;
    try {
      repository = await document.repository;
      const context = repository && {
        repo: repository.name,
        path: pathIn(repository, document.path!),
        files: await session.documents.overlay(repository, document),
      };
      if (signal.aborted || performance.now() < this.#quietUntilMs) return undefined;
      const query = { prompt: promptOf(before), suffix: suffixOf(behind), language: document.language, context };
      const answer = await session.system.complete(query, signal);
      if (signal.aborted) return undefined;
      this.#answered(session, repository, answer);
      return answer;
    } catch (error) {
      if (signal.aborted) return undefined;
      const failure = ServingError.from(error);
      if (failure.code === 'superseded') return undefined; // by a keystroke that is on its way here
      this.#quietUntilMs = performance.now() + (failure.retryAfterSeconds ?? 0) * 1000;
      this.#status.failed(failure, repository?.name);
      return undefined;
    } finally {
      onCancel.dispose();
      if (this.#inFlight === later) this.#inFlight = undefined;
    }
  }

  #answered({ following }: Session, repository: Repository | undefined, answer: CompletionAnswer): void {
    const { chunks, degraded } = answer;
    if (repository === undefined) {
      const message = 'completed without context: the document lies in no repository of git';
      this.#status.set({ state: 'ready', code: 'no_repository', message });
      return;
    }
    following.answered(repository);
    const { name } = repository;
    const isIndexing = degraded !== undefined && following.isIndexing(repository);
    const [state, code] = isIndexing ? (['indexing', 'indexing'] as const) : (['ready', degraded ?? 'ok'] as const);
    const why = isIndexing ? 'it is being indexed' : degraded && reasonInWords(degraded);
    const message = `completed with ${chunks} chunks of ${name}${why === undefined ? '' : `: ${why}`}`;
    this.#status.set({ state, code, message, repository: name, chunks });
  }

  /** For editors without ghost text: one entry of the list that they show. */
  async #completionList(params: CompletionParams, token: CancellationToken): Promise<CompletionList | null> {
    const suggestion = await this.#suggest(
      { ...params, context: { triggerKind: InlineCompletionTriggerKind.Automatic } },
      token,
    );
    const document = this.#session?.documents.get(params.textDocument.uri);
    if (suggestion === undefined || document === undefined) return null;
    return { isIncomplete: true, items: [listItem(suggestion, document, params.position)] };
  }

  /** Shows the progress of a run where the editor can. */
  #progress(title: string): IndexRun {
    const { window } = this.#connection;
    let shown: (WorkDoneProgressReporter & { begin(title: string, percentage: number): void }) | undefined;
    let percentage = 0;
    let ended = false;
    void window.createWorkDoneProgress().then(
      (progress) => {
        if (ended) return;
        shown = progress;
        shown.begin(title, percentage);
      },
      () => {}, // an editor that refuses is not shown it
    );
    return {
      progress: (message, reached) => {
        if (reached <= percentage) return;
        percentage = reached;
        shown?.report(percentage, message);
      },
      end: () => {
        ended = true;
        shown?.done();
      },
    };
  }

  #log(type: MessageType, message: string): void {
    this.#notify('window/logMessage', { type, message });
  }

  /** An editor that is gone is told nothing. */
  #notify(method: string, params: object): void {
    this.#connection.sendNotification(method, params).catch(() => {});
  }
}

/** Characters after which editors without ghost text ask, beside those of words. */
const TRIGGERS = ['.', '(', ',', ' ', '=', ':'];

/** The editor's first choice among what is known here; the protocol's default where it names none. */
const encodingOf = (offered: readonly string[] = []): PositionEncoding =>
  (offered.find((name) => (POSITION_ENCODINGS as readonly string[]).includes(name)) as PositionEncoding) ?? 'utf-16';

/** Where a completion is asked for. */
interface Place {
  /** Text before and behind it. */
  readonly before: string;
  readonly behind: string;
  /** What is replaced. */
  readonly range: Range;
  /** What is replaced becomes this, before the completion: the entry of a list that the user has before their eyes. */
  readonly begun: string;
}

function placeOf({ buffer }: OpenDocument, { position, context }: InlineCompletionParams): Place {
  const { text } = buffer;
  const selected = context?.selectedCompletionInfo;
  if (selected) {
    const [from, to] = [buffer.offsetAt(selected.range.start), buffer.offsetAt(selected.range.end)];
    const before = text.slice(0, from) + selected.text;
    return { before, behind: text.slice(to), range: selected.range, begun: selected.text };
  }
  const offset = buffer.offsetAt(position);
  const at = buffer.positionAt(offset);
  return { before: text.slice(0, offset), behind: text.slice(offset), range: { start: at, end: at }, begun: '' };
}

const acceptance = (id: string) => ({ title: 'Accept', command: ACCEPT_COMMAND, arguments: [id] });

const inlineItem = ({ id, text, range }: Suggestion): InlineCompletionItem => ({
  insertText: text,
  range,
  command: acceptance(id),
});

/** An editor compares the word before the cursor with the entry's, so the entry begins with that word. */
function listItem({ id, text }: Suggestion, { buffer }: OpenDocument, position: Position): CompletionItem {
  const offset = buffer.offsetAt(position);
  const word = /[\p{L}\p{N}_]*$/u.exec(buffer.text.slice(Math.max(0, offset - MAX_WORD), offset))![0];
  const first = text.trimStart().split(/[\r\n]/, 1)[0]!;
  return {
    label: word + first,
    kind: CompletionItemKind.Snippet,
    detail: 'LlavaCode',
    filterText: word + first,
    insertTextMode: InsertTextMode.asIs,
    textEdit: {
      range: { start: buffer.positionAt(offset - word.length), end: buffer.positionAt(offset) },
      newText: word + text,
    },
    command: acceptance(id),
  };
}

/** A word that is longer, in UTF-16 units, is taken for its end. */
const MAX_WORD = 256;
