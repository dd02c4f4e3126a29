/**
 * The files of an upload, on their way to an index run. An upload is not trusted: paths must stay inside the
 * repository, and numbers and sizes are bounded after unpacking, however little was sent. Content waits in a spool, and
 * names are only ever strings, never files.
 */

import { Turns } from '../lib/async/turns.ts';
import { ServingError } from '../lib/process/errors.ts';
import { normalisePath } from '../lib/rag/store/path-form.ts';
import { GITIGNORE, IgnoreRules } from './gitignore.ts';
import { LEFT_OUT_FILE, LEFT_OUT_FILE_BYTES, type LeftOutBefore, LeftOutNames, readLeftOut } from './left-out.ts';
import {
  asRules,
  asSource,
  ENVIRONMENT_MARKS,
  isDependency,
  isHidden,
  noSkips,
  type Selecting,
  type SkipReason,
  sizeLimit,
} from './selection.ts';
import type { Sources } from './sources.ts';
import { type Extent, Spool } from './spool.ts';
import { covers } from './tree.ts';

export interface UploadLimits extends Pick<Selecting, 'defaultExcludes'> {
  readonly maxFileBytes: number;
  readonly maxUploadBytes: number;
  readonly maxRepoBytes: number;
  readonly maxRepoFiles: number;
}

/** Longest path in UTF-8 bytes, as on Linux. */
const MAX_PATH_BYTES = 4_096;
/**
 * Unpacked bytes for each packed byte. Source code packs about 5:1, repetitive code 50:1, and deflate can reach 1000:1.
 */
const MAX_RATIO = 100;
/** So many unpacked bytes are not suspicious at any ratio. */
const RATIO_FREE = 32 * 1024 * 1024;

/** Roots of Unix and Windows, and URLs of files: paths of an upload are relative to the repository. */
const ABSOLUTE = /^(?:[/\\]|[A-Za-z]:[/\\]|file:[/\\])/i;

const refused = (message: string) => new ServingError('invalid_request', message);

export class Upload {
  readonly #limits: UploadLimits;
  readonly #spool: Spool;
  readonly #strip: number;
  /** By path: the place of the text, or why there is none. If two files have one path, the later counts, as in tar. */
  readonly #files = new Map<string, Extent | SkipReason>();
  readonly #rules = new IgnoreRules();
  readonly #deleted = new Set<string>();
  /** Folders that are virtual environments. */
  readonly #environments = new Set<string>();
  /** Files of which a part is left out. */
  readonly #partly = new Map<string, SkipReason>();
  /** What the client has left out before. */
  #clients: LeftOutBefore = { files: [], counts: {} };
  #entries = 0;
  #unpacked = 0;
  /** Files left out whose names are not unique, or have no normal form. */
  readonly #unnamed = { invalid_utf8: 0, odd_name: 0 };

  private constructor(limits: UploadLimits, spool: Spool, strip: number) {
    this.#limits = limits;
    this.#spool = spool;
    this.#strip = strip;
  }

  /** @param strip number of leading folders to drop from each path, as in tar's --strip-components. */
  static async open(limits: UploadLimits, strip = 0): Promise<Upload> {
    return new Upload(limits, await Spool.open(), strip);
  }

  /**
   * The path of the next file or folder as the index knows it, in normal form (see path-form.ts); undefined if it lies
   * above the repository's root.
   * @throws ServingError invalid_request for a path that leads out of the repository, is too long or has no normal
   *   form; payload_too_large.
   */
  enter(raw: string): string | undefined {
    this.assertCount(++this.#entries);
    const shown = JSON.stringify(raw.slice(0, 200));
    if (raw.length > MAX_PATH_BYTES || Buffer.byteLength(raw) > MAX_PATH_BYTES) {
      throw refused(`path ${shown}… is longer than ${MAX_PATH_BYTES} bytes`);
    }
    const leadsOut = ABSOLUTE.test(raw) || raw.split(/[/\\]/).includes('..');
    if (leadsOut) throw refused(`path ${shown} of the upload is absolute or leads out of the repository`);
    if (/\p{Cc}/u.test(raw)) throw refused(`path ${shown} of the upload holds a NUL or another control character`);
    const path = normalisePath(raw);
    const below = path?.split('/').slice(this.#strip).join('/');
    if (below === undefined || below === '') return undefined;
    // What is left may read as a drive or a URL, which only the folders before it had hidden.
    if (normalisePath(below) !== below) throw refused(`path ${shown} of the upload does not name a file`);
    this.#noteEnvironment(below);
    return below;
  }

  /**
   * Like {@link enter}, for archives, which hold whatever lay in a folder: a name with a control character (macOS
   * writes `Icon\r`) is left out and counted. NUL is refused all the same.
   */
  enterEntry(raw: string): string | undefined {
    if (raw.includes('\0') || !/\p{Cc}/u.test(raw)) return this.enter(raw);
    this.assertCount(++this.#entries);
    if (!raw.endsWith('/')) this.#unnamed.odd_name++;
    return undefined;
  }

  #noteEnvironment(path: string): void {
    const names = path.split('/');
    const mark = names.findIndex((name) => ENVIRONMENT_MARKS.includes(name));
    if (mark > 0) this.#environments.add(names.slice(0, mark).join('/'));
  }

  /** @throws ServingError payload_too_large for more files and folders than are allowed. */
  assertCount(entries: number): void {
    const { maxRepoFiles } = this.#limits;
    if (entries > maxRepoFiles) throw tooLarge(`has more than ${maxRepoFiles} files and folders`, '--max-repo-files');
  }

  /**
   * Counts unpacked bytes.
   * @param packed bytes that all of them so far were unpacked from.
   * @throws ServingError payload_too_large
   */
  count(bytes: number, packed: number): void {
    this.#unpacked += bytes;
    const { maxRepoBytes } = this.#limits;
    if (this.#unpacked > maxRepoBytes) throw tooLarge(`unpacks to more than ${maxRepoBytes} bytes`, '--max-repo-bytes');
    if (this.#unpacked > Math.max(RATIO_FREE, packed * MAX_RATIO)) {
      throw new ServingError(
        'payload_too_large',
        `the upload unpacks to more than ${MAX_RATIO} times its size: source code does not`,
      );
    }
  }

  /** Why the file need not be read, judged by its name and size alone; undefined if it must be read. */
  unwanted(path: string, size: number): SkipReason | undefined {
    // Names come as text, in which bytes that are not UTF-8 were replaced: such names would not be unique.
    if (path.includes('\ufffd') || /\p{Surrogate}/u.test(path)) return 'invalid_utf8';
    if (path === LEFT_OUT_FILE && size <= LEFT_OUT_FILE_BYTES) return undefined;
    if (path.split('/').some(isHidden) && !isIgnoreFile(path)) return 'ignored';
    if (
      path
        .split('/')
        .slice(0, -1)
        .some((name) => isDependency(name, this.#limits))
    )
      return 'dependency';
    return size > sizeLimit(path, this.#limits) ? 'oversize' : undefined;
  }

  /**
   * Notes a file that is not indexed.
   * @throws ServingError payload_too_large or invalid_request for a .gitignore: what it excludes would be indexed. (Not
   *   for a link to one: git does not follow it either.)
   */
  skip(path: string, reason: SkipReason): void {
    if (reason === 'invalid_utf8' && path.includes('\ufffd')) this.#unnamed.invalid_utf8++;
    else if (reason === 'symlink' || reason === 'dependency' || !isIgnoreFile(path)) this.#files.set(path, reason);
    else if (reason !== 'oversize')
      throw refused(`${JSON.stringify(path)} of the upload is not a text file: ${reason}`);
    else throw tooLarge(`has a ${GITIGNORE} of more than ${this.#limits.maxFileBytes} bytes`, '--max-file-bytes');
  }

  /** Adds a file that is not `unwanted`. @param bytes the whole file. */
  async add(path: string, bytes: Uint8Array): Promise<void> {
    if (isIgnoreFile(path)) {
      this.#rules.add(path.slice(0, -GITIGNORE.length), asRules(bytes));
      return;
    }
    if (path === LEFT_OUT_FILE) {
      this.#clients = readLeftOut(bytes);
      return;
    }
    const source = asSource(path, bytes, this.#limits);
    if ('skipped' in source) this.#files.set(path, source.skipped);
    else {
      this.#files.set(path, await this.#spool.append(Buffer.from(source.text)));
      if (source.leftOut) this.#partly.set(path, source.leftOut);
      else this.#partly.delete(path);
    }
  }

  /** For a change set: the file was deleted. */
  delete(path: string): void {
    this.#files.delete(path);
    this.#deleted.add(path);
  }

  /** The sources, as the whole repository. @throws the signal's reason. */
  async all(signal: AbortSignal): Promise<Sources> {
    const skipped = { ...noSkips(), ...this.#unnamed };
    const texts = new Map<string, Extent>();
    const names = new LeftOutNames();
    const leaveOut = (path: string, reason: SkipReason) => {
      skipped[reason]++;
      names.add(path, reason);
    };
    for (const [path, reason] of this.#clients.files) names.add(path, reason);
    const turns = new Turns();
    const { defaultExcludes = true } = this.#limits;
    const environments = defaultExcludes ? this.#environments : new Set<string>();
    for (const path of [...this.#files.keys()].sort()) {
      const file = this.#files.get(path) as Extent | SkipReason;
      if (typeof file === 'string') {
        leaveOut(path, file);
        continue;
      }
      if (covers(environments, path)) {
        leaveOut(path, 'dependency');
        continue;
      }
      const deciding = this.#rules.decide(path);
      let step = deciding.next();
      for (; !step.done; step = deciding.next()) {
        if (!turns.over) continue;
        await turns.next();
        signal.throwIfAborted();
      }
      if (step.value) leaveOut(path, 'ignored');
      else texts.set(path, file);
    }
    return {
      paths: [...texts.keys()],
      skipped,
      leftOut: { files: names.files, counts: this.#clients.counts },
      read: async (path) => {
        const text = new TextDecoder().decode(await this.#spool.read(texts.get(path) as Extent));
        const leftOut = this.#partly.get(path);
        return leftOut ? { text, leftOut } : { text };
      },
    };
  }

  /** The sources, as changes to the current version. @throws the signal's reason. */
  async changes(baseVersion: string | undefined, signal: AbortSignal): Promise<Sources> {
    return { ...(await this.all(signal)), replaced: new Set([...this.#files.keys(), ...this.#deleted]), baseVersion };
  }

  async close(): Promise<void> {
    await this.#spool.close();
  }
}

/** Whether it is a .gitignore in a folder that is indexed. */
function isIgnoreFile(path: string): boolean {
  const folders = path.split('/');
  return folders.pop() === GITIGNORE && !folders.some(isHidden);
}

const tooLarge = (what: string, setting: string) =>
  new ServingError('payload_too_large', `the upload ${what} (${setting})`);
