/** A checkpoint as a source of named tensors: a safetensors file, the shards that an index names, or a PyTorch file. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../process/errors.ts';
import { reasonOf } from '../../process/os-errors.ts';
import type { BlockLevels } from './ggml-types.ts';
import { SafetensorsFile } from './safetensors.ts';
import { TorchFile } from './torch-file.ts';

type TensorFile = SafetensorsFile | TorchFile;

/** A source of weights: a checkpoint on disk, or random numbers for a benchmark. */
export interface TensorSource {
  /** Name of the source, for messages. */
  readonly origin: string;
  /** The shape of a tensor; undefined if there is none of that name. */
  shapeOf(name: string): readonly number[] | undefined;
  /** The values of a tensor in row-major order. */
  read(name: string): Promise<Float32Array>;
  /** Reads a tensor that is stored in blocks of 32 as levels and scales alone; undefined for one that is not. */
  levels?(name: string): (() => Promise<BlockLevels>) | undefined;
}

const indexSchema = z.object({
  weight_map: z.record(z.string(), z.string().regex(/^[^/\\]+$/, 'must be a plain file name')),
});

export class Checkpoint implements TensorSource {
  readonly origin: string;
  readonly #files: readonly TensorFile[];
  readonly #fileOf: ReadonlyMap<string, TensorFile>;

  private constructor(origin: string, files: readonly TensorFile[], fileOf: ReadonlyMap<string, TensorFile>) {
    this.origin = origin;
    this.#files = files;
    this.#fileOf = fileOf;
  }

  /**
   * Opens a safetensors file, a file of torch.save (`.pth`, `.pt`, `.bin`), or a Hugging Face folder with
   * `model.safetensors` or `model.safetensors.index.json`.
   * @throws ServingError checkpoint_invalid
   */
  static async open(path: string): Promise<Checkpoint> {
    const entry = await stat(path).catch(() => undefined);
    if (!entry) throw invalid(path, 'does not exist', 'Correct the path.');
    if (!entry.isDirectory()) {
      if (/\.(pth|pt|bin)$/.test(path)) return Checkpoint.#ofFile(path, await TorchFile.open(path));
      if (!path.endsWith('.safetensors'))
        throw invalid(path, 'is neither a .safetensors nor a .pth file', 'Convert it to safetensors first.');
      return Checkpoint.#ofFile(path, await SafetensorsFile.open(path));
    }
    const index = await readFile(join(path, 'model.safetensors.index.json'), 'utf8').catch(() => undefined);
    if (index !== undefined) return Checkpoint.#ofShards(path, index);
    const single = join(path, 'model.safetensors');
    if (!(await stat(single).catch(() => undefined))) {
      throw invalid(
        path,
        'holds neither model.safetensors nor model.safetensors.index.json',
        'Convert the weights to safetensors.',
      );
    }
    return Checkpoint.#ofFile(single, await SafetensorsFile.open(single));
  }

  static #ofFile(path: string, file: TensorFile): Checkpoint {
    return new Checkpoint(path, [file], new Map([...file.tensors.keys()].map((name) => [name, file])));
  }

  static async #ofShards(dir: string, indexText: string): Promise<Checkpoint> {
    const indexPath = join(dir, 'model.safetensors.index.json');
    let index: z.output<typeof indexSchema>;
    try {
      index = indexSchema.parse(JSON.parse(indexText));
    } catch (error) {
      throw invalid(indexPath, `is not an index of shards: ${reasonOf(error)}`);
    }
    const shards = new Map<string, SafetensorsFile>();
    try {
      const fileOf = new Map<string, SafetensorsFile>();
      for (const [tensor, name] of Object.entries(index.weight_map)) {
        const shard = shards.get(name) ?? (await SafetensorsFile.open(join(dir, name)));
        shards.set(name, shard);
        if (!shard.tensors.has(tensor))
          throw invalid(indexPath, `tensor ${JSON.stringify(tensor)} is missing from ${name}`);
        fileOf.set(tensor, shard);
      }
      return new Checkpoint(dir, [...shards.values()], fileOf);
    } catch (error) {
      for (const shard of shards.values()) await shard.close();
      throw error;
    }
  }

  shapeOf(name: string): readonly number[] | undefined {
    return this.#fileOf.get(name)?.tensors.get(name)?.shape;
  }

  async read(name: string): Promise<Float32Array> {
    const file = this.#fileOf.get(name);
    if (!file) throw invalid(this.origin, `tensor ${JSON.stringify(name)} is missing`);
    return file.read(name);
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

const invalid = (path: string, what: string, remedy?: string) =>
  new ServingError('checkpoint_invalid', `${path}: ${what}`, { remedy });

/** Reads a tensor, at the moment at which it is written. */
export interface TensorReader {
  (): Promise<Float32Array>;
  /** Reads the levels and scales that the tensor is stored in, if it is: they need no rounding (see BlockLevels). */
  readonly levels?: () => Promise<BlockLevels>;
}

/**
 * Checks a tensor that a graph needs, and returns a function that reads it later.
 * @throws ServingError checkpoint_invalid if it is missing or has another shape
 */
export function expectTensor(source: TensorSource, name: string, shape: readonly number[]): TensorReader {
  const found = source.shapeOf(name);
  if (!found) throw invalid(source.origin, `tensor ${JSON.stringify(name)} [${shape}] is missing`);
  if (found.length !== shape.length || found.some((dim, i) => dim !== shape[i])) {
    throw invalid(
      source.origin,
      `tensor ${JSON.stringify(name)} has shape [${found}], but config.json asks for [${shape}]`,
    );
  }
  return Object.assign(() => source.read(name), { levels: source.levels?.(name) });
}
