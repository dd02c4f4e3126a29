/**
 * The audit log: lines that say who did what, for whoever has to answer for that later. It is apart from the log, which
 * is for operators, and never thinned out. A file is rotated; what cannot be written is counted, and requests go on.
 */
import { once } from 'node:events';
import { basename, dirname, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createStream, type RotatingFileStream } from 'rotating-file-stream';
import { ServingError } from './errors.ts';
import { createRecorder, type Logger } from './log.ts';
import { metrics } from './metrics.ts';
import { reasonOf } from './os-errors.ts';

/** One line. Every field stands on every line; null where it does not apply. */
export interface AuditEntry {
  readonly action: string;
  /** `ok`, or the code of the error that it ended in. */
  readonly outcome: string;
  /** HTTP status. */
  readonly status: number | null;
  readonly request_id: string | null;
  readonly tenant: string | null;
  /** The first 16 digits of the SHA-256 of the key, as in the file of keys. */
  readonly key: string | null;
  /** Address that the request came from. */
  readonly client: string | null;
  /** Name of the repository, as its tenant knows it. */
  readonly repo: string | null;
  /** What there is to say of the action beyond that: figures and words of this program, never a client's text. */
  readonly detail: Readonly<Record<string, string | number>>;
}

export interface AuditLog {
  write(entry: AuditEntry): void;
  /** Waits until what was written is in the file, for a bounded time. */
  close(): Promise<void>;
}

/** A file is put aside at this size, as FILE.1 to FILE.16; older ones are removed. */
const FILES = { size: '64M', rotate: 16, mode: 0o600 } as const;
/** Lines that wait for a slow disk, in bytes; beyond it lines are lost. */
const MAX_WAITING = 4 * 1024 * 1024;
/** Pause after a failure until the file is opened again, in ms. */
const REOPEN_MS = 10_000;
/** Longest wait for the last lines at the end of the process, in ms. */
const CLOSE_MS = 2_000;

const lost = () => metrics.auditLinesLost.inc();

/** Nobody keeps an audit log. */
export const NO_AUDIT: AuditLog = { write: () => {}, close: async () => {} };

/**
 * @param target a file, `stdout`, or '' for none.
 * @param log told of a file that cannot be written any more.
 * @throws ServingError config_invalid when the file cannot be written at the start.
 */
export async function openAuditLog(target: string, service: string, log: Pick<Logger, 'error'>): Promise<AuditLog> {
  if (target === '') return NO_AUDIT;
  metrics.auditLinesLost.inc(0);
  if (target === 'stdout') {
    const recorder = createRecorder(service, 'stdout', lost);
    return { write: writeTo(recorder), close: async () => {} };
  }
  const file = new AuditFile(resolve(target), log);
  await file.open();
  const recorder = createRecorder(service, file, lost);
  return { write: writeTo(recorder), close: () => file.close() };
}

/** Fields stand on every line in the same order; `audit` is the number of their form. */
const writeTo =
  (recorder: Logger) =>
  ({ action, outcome, status, request_id, tenant, key, client, repo, detail }: AuditEntry) =>
    recorder.info({ audit: 1, action, outcome, status, request_id, tenant, key, client, repo, detail }, 'audit');

class AuditFile {
  readonly #path: string;
  readonly #log: Pick<Logger, 'error'>;
  #stream: RotatingFileStream | undefined;
  #reopenAtMs = 0;

  constructor(path: string, log: Pick<Logger, 'error'>) {
    this.#path = path;
    this.#log = log;
  }

  /** @throws ServingError config_invalid */
  async open(): Promise<void> {
    try {
      await once(this.#start(), 'open');
    } catch (cause) {
      throw new ServingError('config_invalid', `--audit-log ${this.#path}: ${reasonOf(cause)}`, { cause });
    }
  }

  write(line: string): void {
    const stream = this.#stream ?? (performance.now() >= this.#reopenAtMs ? this.#start() : undefined);
    if (stream === undefined || stream.writableLength > MAX_WAITING) lost();
    else stream.write(line, (error) => void (error && lost()));
  }

  async close(): Promise<void> {
    const stream = this.#stream;
    if (stream === undefined) return;
    const ended = new Promise<void>((resolve) => stream.end(() => resolve()));
    await Promise.race([ended, sleep(CLOSE_MS, undefined, { ref: false })]);
  }

  #start(): RotatingFileStream {
    const stream = createStream(basename(this.#path), { path: dirname(this.#path), ...FILES });
    stream.on('error', (err) => {
      if (this.#stream !== stream) return;
      this.#stream = undefined;
      this.#reopenAtMs = performance.now() + REOPEN_MS;
      this.#log.error({ err, path: this.#path }, 'the audit log cannot be written: lines are lost');
    });
    this.#stream = stream;
    return stream;
  }
}
