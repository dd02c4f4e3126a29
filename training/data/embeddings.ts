/**
 * Embeddings of chunks, kept on disk by the digest of the chunk: one for each soft token of a chunk. The encoder is
 * frozen, so each chunk is encoded once, however many samples and epochs have it. Files are named by the encoder's own
 * digest: those of another encoder are never read.
 *
 * `embeddings/DIGEST/000000-UUID.safetensors` … each hold up to {@link FILE_CHUNKS} chunks, one tensor each, named by
 * the SHA-256 of path and text. No two files have one name, so several runs may write at the same time. There may be
 * thousands of them, so only those that were used last stay open.
 */
import { createHash, randomUUID } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { OrtSession } from '../../services/lib/engine/ort.ts';
import { encoderSettings } from '../../services/lib/model/bundle/encoder-settings.ts';
import { SafetensorsFile } from '../../services/lib/model/checkpoint/safetensors.ts';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import type { SourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import type { NetworkSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { buildEncoder } from '../../services/lib/model/graph/encoder.ts';
import { ServingError, withRemedy } from '../../services/lib/process/errors.ts';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { encoderInputs } from '../../services/lib/rag/encode/encode.ts';
import { type InputBuilder, inputBuilder } from '../../services/lib/rag/encode/encoder-input.ts';
import { openGraph, type SessionPlace } from '../step/graph-session.ts';
import type { Chunk } from './rows.ts';

export type EncoderChoices = Parameters<typeof encoderSettings>[2];

/** How chunks were encoded, and by what; the export refuses another encoder. */
type TrainedSettings = ReturnType<typeof encoderSettings> & Pick<NetworkSpec, 'architecture' | 'layers'>;

/**
 * Chunks of one file: a process that is killed loses at most so many, some minutes of an encoder of 0.6B on two cores.
 * They are sorted by their length before they are encoded, so that few tokens are padding: fewer would sort less well.
 */
const FILE_CHUNKS = 256;
/** Files that stay open, those that were used last. Systems allow a process some 1,000. */
const MOST_OPEN = 64;
/** Earlier versions had no UUID there. */
const FILE_NAME = /^\d{6,}(-[0-9a-f-]{36})?\.safetensors$/;
/** Tokens of one run of the encoder, padding included. */
const RUN_TOKENS = 2048;

/** SHA-256 of path and text, in hex: what an embedding depends on besides the encoder. */
export const chunkKey = ({ path, text }: Chunk) => createHash('sha256').update(`${path}\0${text}`).digest('hex');

export class Embeddings {
  /** Values of one embedding. */
  readonly dim: number;
  /** Embeddings of one chunk, each of which becomes a soft token. */
  readonly perChunk: number;
  /** The settings of the encoder, as the projector's config.json has them for the export. */
  readonly settings: TrainedSettings;
  /** SHA-256 of all that an embedding depends on besides the chunk, in hex. */
  readonly digest: string;
  readonly #dir: string;
  /** Undefined when it was closed. */
  #encoder: OrtSession | undefined;
  readonly #inputs: InputBuilder;
  /** By path, that which was used last at the end. One with users is not closed. */
  readonly #open = new Map<string, { readonly file: Promise<SafetensorsFile>; users: number }>();
  /** The path of the file of each chunk. */
  readonly #pathOf = new Map<string, string>();
  /** Files that were there or were written. */
  #files = 0;

  private constructor(
    dim: number,
    settings: TrainedSettings,
    digest: string,
    dir: string,
    encoder: OrtSession,
    inputs: InputBuilder,
  ) {
    this.dim = dim;
    this.perChunk = settings.softPerChunk ?? 1;
    this.settings = settings;
    this.digest = digest;
    this.#dir = dir;
    this.#encoder = encoder;
    this.#inputs = inputs;
  }

  /**
   * @param dir folder of the embeddings of all encoders
   * @throws ServingError checkpoint_invalid; config_invalid for settings that the encoder cannot have.
   */
  static async open(
    dir: string,
    network: SourceNetwork,
    choices: EncoderChoices,
    place: SessionPlace,
    signal?: AbortSignal,
  ): Promise<Embeddings> {
    const { spec, weights, tokenizerDir } = network;
    const settings = encoderSettings(spec, {}, choices);
    const inputs = await inputBuilder(tokenizerDir, tokenizerDir, settings);
    const graph = buildEncoder(spec, weights, { weights: 'fp32', ...settings });
    const { session, digest: ofGraph } = await openGraph(graph, place, signal).catch((error) => {
      inputs.dispose();
      throw error;
    });
    const digest = createHash('sha256')
      .update(`${ofGraph} ${JSON.stringify(settings)}`)
      .digest('hex');
    const { hidden, architecture, layers } = spec;
    const described = { ...settings, architecture, layers };
    const opened = new Embeddings(hidden, described, digest, join(dir, digest.slice(0, 16)), session, inputs);
    try {
      await opened.#readFiles();
    } catch (error) {
      await opened.dispose();
      throw error;
    }
    return opened;
  }

  async #readFiles(): Promise<void> {
    await makeFolder(this.#dir);
    const names = (await readdir(this.#dir)).filter((name) => FILE_NAME.test(name)).sort();
    for (const name of names) await this.#addFile(join(this.#dir, name));
  }

  async #addFile(path: string): Promise<void> {
    await this.#with(path, async ({ tensors }) => {
      for (const key of tensors.keys()) this.#pathOf.set(key, path);
    });
    this.#files++;
  }

  /** Uses a file, which stays open until {@link MOST_OPEN} others were used after it. */
  async #with<T>(path: string, use: (file: SafetensorsFile) => Promise<T>): Promise<T> {
    const entry = this.#open.get(path) ?? { file: this.#openFile(path), users: 0 };
    this.#open.delete(path);
    this.#open.set(path, entry);
    entry.users++;
    try {
      return await use(await entry.file);
    } finally {
      entry.users--;
      await this.#closeLongUnused();
    }
  }

  async #openFile(path: string): Promise<SafetensorsFile> {
    try {
      const remedy = 'Remove this file: its chunks are encoded again.';
      return await withRemedy('checkpoint_invalid', remedy, () => SafetensorsFile.open(path));
    } catch (error) {
      this.#open.delete(path);
      throw error;
    }
  }

  async #closeLongUnused(): Promise<void> {
    for (const [path, { file, users }] of this.#open) {
      if (this.#open.size <= MOST_OPEN) return;
      if (users > 0) continue;
      this.#open.delete(path);
      await (await file).close();
    }
  }

  /**
   * Encodes the chunks that are not kept yet. Those of one file lie in memory, however many there are.
   * @param onProgress told how many of them are encoded, several times for each file
   * @throws ServingError runtime_failed, path_unusable; the signal's reason.
   */
  async add(chunks: Iterable<Chunk>, onProgress: (done: number) => void, signal?: AbortSignal): Promise<void> {
    let done = 0;
    const missing = new Map<string, Chunk>();
    const encode = async () => {
      const part = [...missing];
      missing.clear();
      const vectors = await this.#encode(part, (encoded) => onProgress(done + encoded), signal);
      const place = String(this.#files).padStart(6, '0');
      const path = join(this.#dir, `${place}-${randomUUID()}.safetensors`);
      const shape = this.perChunk === 1 ? [this.dim] : [this.perChunk, this.dim];
      await writeSafetensors(path, new Map(part.map(([key], i) => [key, { shape, data: vectors[i]! }])));
      await this.#addFile(path);
      done += part.length;
    };
    for (const chunk of chunks) {
      const key = chunkKey(chunk);
      if (!this.#pathOf.has(key)) missing.set(key, chunk);
      if (missing.size === FILE_CHUNKS) await encode();
    }
    if (missing.size > 0) await encode();
  }

  /** [perChunk, dim] of each chunk, in the order of `chunks`; those of similar length are computed together. */
  async #encode(
    chunks: readonly (readonly [string, Chunk])[],
    onProgress: (encoded: number) => void,
    signal?: AbortSignal,
  ): Promise<Float32Array[]> {
    const rows = chunks.map(([, chunk], i) => ({ i, ids: this.#inputs.build(chunk).ids }));
    rows.sort((a, b) => a.ids.length - b.ids.length || a.i - b.i);
    const vectors = new Array<Float32Array>(chunks.length);
    for (let start = 0; start < rows.length; ) {
      let end = start + 1;
      while (end < rows.length && (end + 1 - start) * rows[end]!.ids.length <= RUN_TOKENS) end++;
      const batch = rows.slice(start, end);
      const output = this.perChunk === 1 ? 'embeddings' : 'windows';
      const out = await this.#encoder!.run(encoderInputs(batch.map(({ ids }) => ids)), [output], signal);
      const all = out[output]!.data as Float32Array;
      const size = this.perChunk * this.dim;
      for (const [j, { i }] of batch.entries()) {
        vectors[i] = all.slice(j * size, (j + 1) * size);
        assertFinite(vectors[i], chunks[i]![1]);
      }
      start = end;
      onProgress(end);
    }
    return vectors;
  }

  /** The embeddings of chunks that were added: [chunks, perChunk, dim]. */
  async of(chunks: readonly Chunk[]): Promise<Float32Array> {
    const size = this.perChunk * this.dim;
    const all = new Float32Array(chunks.length * size);
    const keys = chunks.map(chunkKey);
    for (const path of new Set(keys.map((key) => this.#pathOf.get(key)!))) {
      await this.#with(path, async (file) => {
        for (const [i, key] of keys.entries()) {
          if (this.#pathOf.get(key) === path) all.set(await file.read(key), i * size);
        }
      });
    }
    return all;
  }

  /** Gives the encoder's memory back. Afterwards chunks can be read and not added. */
  closeEncoder(): void {
    this.#encoder?.dispose();
    this.#encoder = undefined;
  }

  async dispose(): Promise<void> {
    this.closeEncoder();
    this.#inputs.dispose();
    for (const { file } of this.#open.values()) await (await file).close();
  }
}

/** Vectors are kept for later runs, so none that is damaged may be written. @throws ServingError checkpoint_invalid */
function assertFinite(vector: Float32Array, { path, text }: Chunk): void {
  const at = vector.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return;
  const [line] = text.split('\n', 1);
  const where = `a chunk of ${path || 'a file without a name'} (${JSON.stringify(line)})`;
  const what = `the encoder's embedding of ${where} is ${vector[at]}: its weights are damaged, or not for such text`;
  const remedy = 'Download the encoder again, name another one, or leave out the samples with this chunk.';
  throw new ServingError('checkpoint_invalid', what, { remedy });
}
