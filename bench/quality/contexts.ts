/**
 * Indexes of a running system that an evaluation searches: one for each repository, or one for each sample with the
 * chunks that stand in the benchmark. Both are made over HTTP, as a user's are, and removed when they are done with.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { posix } from 'node:path';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import { treeIndexer } from '../../services/indexer/tree-indexer.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { GatewayTarget } from '../../services/repo-client.ts';
import type { GivenChunk, Sample } from './formats.ts';
import { within } from './samples.ts';

/** A chunk as an answer names it. */
interface ChunkPlace {
  readonly path: string;
  readonly startLine: number;
  readonly endLine: number;
}

/** What a sample's prompts are searched in. */
export interface SampleContext {
  /** Name of the repository in requests. */
  readonly repo: string;
  /** Of the index. */
  readonly version: string;
  /** Chunks that the benchmark gives, and chunks that the system has made of them; equal unless it cuts or skips. */
  readonly given: number;
  readonly indexed: number;
  /** @throws ServingError path_unusable */
  textOf(place: ChunkPlace): Promise<string>;
}

interface System {
  readonly url: string;
  readonly apiKey: string | undefined;
  readonly signal: AbortSignal;
  readonly onProgress: (text: string) => void;
}

export class Contexts {
  readonly #system: System;
  readonly #repositories: string | undefined;
  /** Versions of the indexes of whole repositories, by their names. */
  readonly #indexed = new Map<string, string>();
  /** Digests of whole repositories, by the names of their folders. */
  readonly #contents = new Map<string, Promise<string>>();

  /** @param repositories folder of whole repositories; undefined where the benchmark's chunks are indexed. */
  constructor(system: System, repositories: string | undefined) {
    this.#system = system;
    this.#repositories = repositories;
  }

  /**
   * Runs `use` with the sample's context.
   * @throws ServingError with the system's code; path_unusable; sample_invalid; the signal's reason.
   */
  async with<T>(sample: Sample, use: (context: SampleContext) => Promise<T>): Promise<T> {
    if (this.#repositories !== undefined) return use(await this.#ofRepository(sample, this.#repositories));
    const files = chunkFiles(sample.chunks ?? [], sample.path);
    if (files.size === 0) return use(NO_CONTEXT);
    const repo = indexName(sample.repository, digestOf([...files]));
    const paths = [...files.keys()].sort();
    try {
      const read = async (path: string) => ({ text: files.get(path)! });
      const report = await this.#target(repo).index({ paths, skipped: {}, read });
      const textOf = async ({ path }: ChunkPlace) => files.get(path) ?? '';
      return await use({ repo, version: report.version, given: files.size, indexed: report.chunks, textOf });
    } finally {
      await this.#remove(repo);
    }
  }

  /**
   * A digest of what the index of a sample's repository is made of: paths and texts of the files that are indexed, in
   * hex. Each repository is read once. '' where the chunks of the sample are indexed, which it holds itself.
   * @throws ServingError sample_invalid, path_unusable; invalid_request where there is no such folder.
   */
  async contentOf({ repository = '', name }: Sample): Promise<string> {
    if (this.#repositories === undefined) return '';
    const dir = within(this.#repositories, repository, '', name);
    const known = this.#contents.get(dir) ?? contentOfTree(dir);
    this.#contents.set(dir, known);
    return known;
  }

  /** Removes the indexes of whole repositories. */
  async close(): Promise<void> {
    for (const repo of this.#indexed.keys()) await this.#remove(repo);
  }

  async #ofRepository(sample: Sample, repositories: string): Promise<SampleContext> {
    const { repository = '', name } = sample;
    // Other files are another index, so that nobody who still has the one before in memory answers from it.
    const repo = indexName(repository, (await this.contentOf(sample)).slice(0, DIGITS));
    const version =
      this.#indexed.get(repo) ?? (await this.#indexTree(repo, within(repositories, repository, '', name)));
    this.#indexed.set(repo, version);
    const textOf = async ({ path, startLine, endLine }: ChunkPlace) => {
      const file = within(repositories, repository, path, name);
      const lines = (await atPath(file, () => readFile(file, 'utf8'))).split(/\r\n|\n|\r/);
      return lines
        .slice(startLine - 1, endLine)
        .filter((line) => line.trim() !== '')
        .join('\n');
    };
    return { repo, version, given: 0, indexed: 0, textOf };
  }

  /** @returns the version of the index. */
  async #indexTree(repo: string, dir: string): Promise<string> {
    const target = this.#target(repo);
    let version = '';
    const index = treeIndexer(dir, WHOLE_TREE, {
      files: () => target.files(),
      index: async (sources) => {
        const report = await target.index(sources);
        version = report.version;
        return report;
      },
    });
    await index();
    return version;
  }

  #target(repo: string): GatewayTarget {
    const { url, apiKey = '', signal, onProgress } = this.#system;
    return new GatewayTarget({
      url,
      apiKey,
      repo,
      signal,
      onSending: () => {},
      onProgress: ({ files, filesRead, chunks }) =>
        onProgress(`indexing ${repo}: ${filesRead} of ${files} files, ${chunks} chunks`),
    });
  }

  /** A failure leaves an index behind that nobody uses, so it is not worth losing the evaluation. */
  async #remove(repo: string): Promise<void> {
    const { url, apiKey } = this.#system;
    const signal = AbortSignal.timeout(REMOVAL_MS);
    const address = `${url.replace(/\/+$/, '')}/v1/repos/${encodeURIComponent(repo)}`;
    try {
      (await sendRequest({ method: 'DELETE', url: address, headers: bearer(apiKey), signal })).resume();
    } catch {}
  }
}

async function contentOfTree(dir: string): Promise<string> {
  const digest = createHash('sha256');
  const sources = await treeSources(dir, WHOLE_TREE);
  for (const path of sources.paths) digest.update(JSON.stringify([path, await sources.read(path)]));
  return digest.digest('hex');
}

/** As a repository is indexed: with the indexer's own choice of files. */
const WHOLE_TREE = {};

/** Time that the removal of an index may take, in ms. */
const REMOVAL_MS = 30_000;

/** The context of a prompt that has none. */
export const NO_CONTEXT: SampleContext = { repo: '', version: '', given: 0, indexed: 0, textOf: async () => '' };

/** Hex digits of a digest in a name, 32 bits: thousands of names differ. */
const DIGITS = 8;
const digestOf = (files: unknown) => createHash('sha256').update(JSON.stringify(files)).digest('hex').slice(0, DIGITS);

/**
 * The name of an index. Names stand in prompts with context as text, so it is the repository's own, with an end that
 * keeps it apart from indexes of others, and of other files, and is the same in every run.
 */
function indexName(repository = '', end: string): string {
  const parts = repository.split('/').map((part) => part.replace(/[^\w.-]/g, '-').replace(/^[.-]+/, ''));
  return `${
    parts
      .filter((part) => part !== '')
      .join('/')
      .slice(0, NAME_LENGTH) || 'repository'
  }-${end}`;
}

/** Longest part of a name that is the repository's own: a gateway takes 200 characters. */
const NAME_LENGTH = 180;

/**
 * Chunks as files with names of their own, each as near to the chunk's path as an indexer takes it: several chunks of
 * one file become `name.py`, `name.2.py` and so on. Blank chunks hold nothing that could be indexed, and are left out.
 * @param current path of the file with the gap, whose chunks an index would not find
 */
export function chunkFiles(chunks: readonly GivenChunk[], current: string): Map<string, string> {
  const files = new Map<string, string>();
  for (const { path, text } of chunks) {
    if (text.trim() === '') continue;
    const plain = indexable(path) || `chunk${posix.extname(current)}`;
    const end = posix.extname(plain);
    const stem = plain.slice(0, plain.length - end.length);
    let name = plain;
    for (let i = 2; files.has(name) || name === current; i++) name = `${stem}.${i}${end}`;
    files.set(name, text);
  }
  return files;
}

/** A path without parts that lead out of the tree, hide a file, or name installed packages. */
function indexable(path: string): string {
  const parts = path.normalize('NFC').split(/[\\/]+/);
  const shown = parts.map((part) => part.replace(/^\.+/, '').replace(/\p{Cc}/gu, ''));
  return shown
    .filter((part) => part !== '')
    .map((part) => (part === 'node_modules' ? 'node-modules' : part))
    .join('/');
}
