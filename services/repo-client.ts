/** A client of `/v1/repos`: brings a working tree into the index of a running system. */
import type { IncomingMessage } from 'node:http';
import type { Readable } from 'node:stream';
import { json as jsonOf, text as textOf } from 'node:stream/consumers';
import { createGzip } from 'node:zlib';
import { createParser } from 'eventsource-parser';
import { pack as packTar } from 'tar-stream';
import { refusalAt, unreachable } from './client.ts';
import { bearer, type HttpCall, sendRequest } from './http-call.ts';
import type { IndexReport } from './indexer/index-run.ts';
import { LEFT_OUT_FILE, LeftOutNames, leftOutOf, writeLeftOut } from './indexer/left-out.ts';
import { notebookOf } from './indexer/notebook.ts';
import { noSkips, type SkipCounts, type SkipReason } from './indexer/selection.ts';
import type { Sources } from './indexer/sources.ts';
import { covers } from './indexer/tree.ts';
import type { IndexTarget } from './indexer/tree-indexer.ts';
import type { IndexProgress } from './indexer/version-builder.ts';
import { Deferred } from './lib/async/deferred.ts';
import { ServingError } from './lib/process/errors.ts';
import { reasonOf } from './lib/process/os-errors.ts';
import { remoteForm } from './lib/rag/store/remote-form.ts';

export interface GatewayRepo {
  /** URL of the gateway. */
  readonly url: string;
  /** '' for a gateway without keys. */
  readonly apiKey: string;
  /** The tenant's name for the repository. */
  readonly repo: string;
  /** Remote URL of the checkout that is sent; undefined if it has none. */
  readonly remoteUrl?: string | undefined;
  readonly signal: AbortSignal;
  /** What else the user could do where no gateway answers, as the end of a message. */
  readonly otherwise?: string;
  readonly onSending: (sent: number, files: number) => void;
  readonly onProgress: (progress: IndexProgress) => void;
}

/** Content of one change set, in bytes: the gateway takes 32 MiB of JSON, in which a byte may take six. */
const CHANGES_BYTES = 4 * 1024 * 1024;
/** Longest silence of the gateway, in ms: longer than the time that it gives the indexer by default. */
const SILENCE_MS = 660_000;

type Change = { readonly path: string; readonly content: string } | { readonly path: string; readonly deleted: true };

/** Ends the sending of a whole tree of which a part turned out to be unreadable. */
class PartUnreadable extends Error {}

export class GatewayTarget implements IndexTarget {
  readonly #of: GatewayRepo;
  readonly #address: string;
  /** Files that the index is known to have: those that this process has sent. */
  #known = new Set<string>();
  #reached = false;

  constructor(of: GatewayRepo) {
    this.#of = of;
    this.#address = `${of.url.replace(/\/+$/, '')}/v1/repos/${encodeURIComponent(of.repo)}`;
  }

  async files(): Promise<number> {
    try {
      const response = await this.#call({ method: 'GET' });
      return ((await jsonOf(response)) as { files?: number }).files ?? 0;
    } catch (error) {
      // An index that cannot be read is replaced.
      if (error instanceof ServingError && ['repo_not_found', 'store_invalid'].includes(error.code)) return 0;
      throw error;
    }
  }

  /** @throws ServingError with the gateway's code; address_unusable, or worker_lost once the gateway was reached. */
  async index(sources: Sources): Promise<IndexReport> {
    if (sources.replaced) return this.#sendChanges(sources);
    const keeps = (sources.unreadable?.size ?? 0) > 0 && (await this.files()) > 0;
    if (keeps) return this.#sendChanges(sources);
    try {
      return await this.#sendAll(sources);
    } catch (error) {
      if (error instanceof PartUnreadable) return this.#sendChanges(sources);
      throw error;
    }
  }

  async #sendAll(sources: Sources): Promise<IndexReport> {
    const skipped: SkipCounts = { ...noSkips(), ...sources.skipped };
    const names = new LeftOutNames();
    const sent = new Set<string>();
    const wasReadable = (sources.unreadable?.size ?? 0) === 0;
    let broken: unknown;
    const { signal } = this.#of;
    const breakOff = new AbortController();
    const tar = packTar();
    tar.on('error', () => {}); // the connection's, which the call reports; unheard it would end the process
    const brokenOff = new Deferred<never>();
    brokenOff.promise.catch(() => {}); // it is raced below, if at all
    const put = async (name: string, content: Buffer) => {
      const written = new Deferred<void>();
      const onWritten = (error?: Error | null) => (error ? written.reject(error) : written.resolve());
      tar.entry({ name, size: content.length, mtime: new Date(0) }, content, onWritten);
      await Promise.race([written.promise, brokenOff.promise]);
    };
    const fill = async () => {
      for await (const [path, text] of this.#texts(sources, skipped, names)) {
        await put(path, Buffer.from(text));
        sent.add(path);
      }
      await put(LEFT_OUT_FILE, writeLeftOut(leftOutOf(sources.leftOut, names, skipped)));
      if (wasReadable && sources.unreadable?.size && (await this.files()) > 0) throw new PartUnreadable();
      await sources.assertThere?.();
      tar.finalize();
    };
    const filling = fill().catch((error: unknown) => {
      broken = error;
      breakOff.abort(error);
    });
    try {
      const zipped = (tar as unknown as NodeJS.ReadableStream).pipe(createGzip({ level: 1 }));
      const report = await this.#put(zipped, 'application/gzip', AbortSignal.any([signal, breakOff.signal]));
      this.#known = sent;
      return withSkips(report, skipped);
    } catch (error) {
      throw broken ?? error;
    } finally {
      brokenOff.reject(new Error('the upload has ended'));
      tar.destroy();
      await filling;
    }
  }

  /**
   * Sends change sets. Files that cannot be read, and files that this process did not send, are not mentioned, so that
   * the index keeps what it has of them.
   */
  async #sendChanges(sources: Sources): Promise<IndexReport> {
    const { replaced, unreadable = new Set<string>() } = sources;
    const skipped: SkipCounts = { ...noSkips(), ...sources.skipped };
    const sent = new Set<string>();
    let base = sources.baseVersion;
    let report: IndexReport | undefined;
    let [changes, bytes] = [[] as Change[], 0];
    const flush = async () => {
      await sources.assertThere?.();
      const body = JSON.stringify({ changes, ...(base !== undefined && { base_version: base }) });
      const next = await this.#put(body, 'application/json', this.#of.signal);
      report = report ? added(report, next) : next;
      base = next.version;
      [changes, bytes] = [[], 0];
    };
    for await (const [path, text] of this.#texts(sources, skipped, new LeftOutNames())) {
      changes.push({ path, content: text });
      sent.add(path);
      bytes += text.length;
      if (bytes >= CHANGES_BYTES) await flush();
    }
    const gone = [...this.#known, ...sources.paths].filter(
      (path) => (!replaced || replaced.has(path)) && !sent.has(path) && !covers(unreadable, path),
    );
    for (const path of new Set(gone)) changes.push({ path, deleted: true });
    if (changes.length > 0 || !report) await flush();
    for (const path of gone) this.#known.delete(path);
    for (const path of sent) this.#known.add(path);
    return withSkips(report as IndexReport, skipped);
  }

  /** Reads all sources, and counts those that have no text. */
  async *#texts(
    sources: Sources,
    skipped: SkipCounts,
    names: LeftOutNames,
  ): AsyncGenerator<readonly [path: string, text: string]> {
    for (const [i, path] of sources.paths.entries()) {
      this.#of.signal.throwIfAborted();
      const source = await sources.read(path);
      if ('skipped' in source) {
        skipped[source.skipped]++;
        names.add(path, source.skipped);
      } else {
        // The indexer counts the notebooks from which it takes the code.
        yield [path, source.leftOut === 'notebook' ? notebookOf(source.text) : source.text];
      }
      this.#of.onSending(i + 1, sources.paths.length);
    }
  }

  async #put(body: string | Readable, type: string, signal: AbortSignal): Promise<IndexReport> {
    const { remoteUrl } = this.#of;
    const remote = remoteUrl === undefined ? undefined : remoteForm(remoteUrl); // user and password stay here
    const headers = {
      'content-type': type,
      accept: 'text/event-stream',
      ...(remote !== undefined && { 'x-llavacode-remote-url': `https://${encodeURI(remote)}` }),
    };
    const response = await this.#call({ method: 'PUT', headers, body, signal });
    let report: IndexReport | undefined;
    let failure: ServingError | undefined;
    const parser = createParser({
      onEvent: ({ data }) => {
        if (data === '[DONE]') return;
        const event = JSON.parse(data);
        if (event.error) failure = refusalAt(this.#of.url, data, 200);
        else if (event.object === 'repo.index') report = event as IndexReport;
        else if (event.object === 'repo.progress') {
          this.#of.onProgress({ ...(event as IndexProgress), filesRead: event.files_read });
        }
      },
    });
    const decoder = new TextDecoder();
    try {
      for await (const bytes of response) parser.feed(decoder.decode(bytes as Uint8Array, { stream: true }));
    } catch (cause) {
      signal.throwIfAborted();
      throw new ServingError('worker_lost', `the answer of ${this.#of.url} broke off: ${reasonOf(cause)}`, { cause });
    }
    if (failure) throw failure;
    if (!report) throw new ServingError('worker_lost', `the answer of ${this.#of.url} ended without a report`);
    return report;
  }

  async #call(call: Omit<HttpCall, 'url' | 'signal'> & Partial<Pick<HttpCall, 'signal'>>): Promise<IncomingMessage> {
    const { url, apiKey } = this.#of;
    const { signal = this.#of.signal } = call;
    const headers = { ...call.headers, ...bearer(apiKey || undefined) };
    let response: IncomingMessage;
    try {
      response = await sendRequest({ ...call, url: this.#address, headers, signal, silenceMs: SILENCE_MS });
    } catch (cause) {
      signal.throwIfAborted();
      if (this.#reached) {
        throw new ServingError('worker_lost', `${url} does not answer: ${reasonOf(cause)}`, { cause });
      }
      throw unreachable(url, cause, this.#of.otherwise);
    }
    this.#reached = true;
    const status = response.statusCode ?? 0;
    if (status < 200 || status > 299) throw refusalAt(url, await textOf(response), status);
    return response;
  }
}

/** The gateway counts what it leaves out of what it was sent; this process has left out other files before. */
function withSkips(report: IndexReport, skipped: SkipCounts): IndexReport {
  const sum = Object.entries(skipped).map(([reason, count]) => [
    reason,
    count + (report.skipped[reason as SkipReason] ?? 0),
  ]);
  return { ...report, skipped: Object.fromEntries(sum) };
}

/** The report of two change sets, one after the other. */
const added = (first: IndexReport, second: IndexReport): IndexReport => ({
  ...second,
  changed: first.changed || second.changed,
  files: first.files + second.files,
  embedded: first.embedded + second.embedded,
  removed: first.removed + second.removed,
  unparsed: first.unparsed + second.unparsed,
  seconds: first.seconds + second.seconds,
});
