/**
 * Hugging Face folders → a model bundle. The bundle appears whole or not at all: it is made in a folder beside its place
 * and renamed. The same input gives the same fingerprint.
 */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { Checkpoint, type TensorSource } from '../checkpoint/checkpoint.ts';
import { type Network, openNetwork } from '../checkpoint/network.ts';
import { type DecoderSpec, isDecoder } from '../checkpoint/spec.ts';
import { buildDecoder } from '../graph/decoder.ts';
import { buildEncoder, type Pooling } from '../graph/encoder.ts';
import type { Graph } from '../graph/graph.ts';
import type { LayerFormats, TableFormat } from '../graph/linear.ts';
import { writeModel } from '../graph/onnx.ts';
import { assertProjectorFits, buildProjector, projectorParameters, readProjectorSpec } from '../graph/projector.ts';
import {
  allFiles,
  type BundleFile,
  contextFingerprintOf,
  type EncoderManifest,
  FORMAT,
  fingerprintOf,
  type Manifest,
} from './bundle.ts';
import { encoderSettings, readProjectorConfig } from './encoder-settings.ts';

export type Precision = Manifest['precision'];

export type PrefillPrecision = 'same' | 'w8a8';

export interface ExportProgress {
  readonly part: 'llm' | 'prefill' | 'encoder' | 'projector';
  /** Bytes of weights written so far, and in all. */
  readonly done: number;
  readonly total: number;
}

export interface ExportOptions {
  /** The language model, or its Hugging Face folder; the folder's `projector/`, if any, is used when none is named. */
  readonly llm: string | Network;
  /** The encoder, or its Hugging Face folder; without it the language model encodes, if there is a projector. */
  readonly encoder?: string | Network;
  /** A LlavaCode projector, its safetensors file, or a folder with `model.safetensors`. */
  readonly projector?: string | TensorSource;
  /** The bundle's folder; a bundle that is there is replaced. */
  readonly to: string;
  readonly precision: Precision;
  /** Weights for prompts: `w8a8` by default where `precision` quantises, else the same ones. */
  readonly prefillPrecision?: PrefillPrecision;
  /** Name under which the model is served; that of the language model's folder by default. */
  readonly name?: string;
  /** Weights that share a scale, when quantised: 128 by default, 32 for quality. */
  readonly block?: number;
  readonly encoderPooling?: Pooling;
  /** How a language model encodes a chunk: see encoder-settings.ts. */
  readonly encoderRecipe?: EncoderManifest['recipe'];
  /** What of a chunk UniXcoder reads: its source, or its syntax tree. */
  readonly encoderModality?: EncoderManifest['modality'];
  /** Tokens of a chunk that the encoder sees. */
  readonly encoderMaxTokens?: number;
  /** Longest sequence: what the model was trained for, at most 32768, by default. */
  readonly maxPositions?: number;
  readonly onProgress?: (progress: ExportProgress) => void;
  readonly signal?: AbortSignal;
}

const DEFAULT_BLOCK = 128;
const DEFAULT_MAX_POSITIONS = 32_768;

interface WeightFormats {
  readonly layers: LayerFormats;
  readonly vocabulary: TableFormat;
  readonly encoder: TableFormat;
  readonly floats?: Graph['floats'];
}

/**
 * `fp16`: the language model in half precision throughout, for CUDA; a CPU computes it by way of 32 bits. `int4`: all of the language model in 4 bits, for speed. `mixed`: its vocabulary, where one matrix decides every token,
 * and its first and last layer in 8. The encoder, whose vectors a projector was trained on, keeps 8 bits in both; the
 * projector is always in 32-bit floats.
 */
export function weightFormats(precision: Precision, layers: number, block = DEFAULT_BLOCK): WeightFormats {
  if (![16, 32, 64, 128, 256].includes(block)) {
    throw new ServingError('config_invalid', `block ${block} is not one of 16, 32, 64, 128, 256`);
  }
  const eight = { bits: 8, block } as const;
  const four = { bits: 4, block } as const;
  switch (precision) {
    case 'fp32':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32' };
    case 'fp16':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32', floats: 'float16' };
    case 'int8':
      return { layers: eight, vocabulary: eight, encoder: eight };
    case 'mixed':
      return { layers: (i) => (i === 0 || i === layers - 1 ? eight : four), vocabulary: eight, encoder: eight };
    case 'int4':
      return { layers: four, vocabulary: four, encoder: eight };
    default:
      throw new ServingError('config_invalid', `precision ${precision} is not one of fp32, fp16, int8, mixed, int4`);
  }
}

/**
 * For prompts. Where no norm comes first, one token's row may be a thousand times the others', and each has a scale of its
 * own. On tiny-coder KL is 5.7e-4 so, 1.7e-3 with one scale a run (int4: 2.3e-2), for 2.5 % of a layer's time; scales
 * by row everywhere would bring 4.4e-4 for 10 %, down_proj in 8-bit blocks 5.3e-4 for 15 %.
 */
export const PROMPT_FORMATS: LayerFormats = (_layer, matrix) =>
  matrix === 'o_proj' || matrix === 'down_proj' ? 'w8a8 by row' : 'w8a8';

/**
 * Writes a bundle.
 * @throws ServingError checkpoint_invalid, projector_invalid or config_invalid; the signal's reason when aborted. The
 *   place of the bundle is then as it was before.
 */
export async function exportBundle(options: ExportOptions): Promise<Manifest> {
  const to = resolve(options.to);
  await assertTarget(to);
  const work = join(dirname(to), `.${basename(to)}.${randomUUID()}`);
  await mkdir(work, { recursive: true });
  try {
    const manifest = await writeParts(options, work);
    await writeFile(join(work, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    options.signal?.throwIfAborted();
    await putInPlace(work, to);
    return manifest;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function writeParts(options: ExportOptions, work: string): Promise<Manifest> {
  await using network = typeof options.llm === 'string' ? await openNetwork(options.llm) : options.llm;
  const { weights } = network;
  const spec = decoderSpec(network);
  const formats = weightFormats(options.precision, spec.layers, options.block);
  const maxPositions = options.maxPositions ?? Math.min(spec.maxPositions, DEFAULT_MAX_POSITIONS);
  if (maxPositions > spec.maxPositions) {
    throw new ServingError('config_invalid', `the model has ${spec.maxPositions} positions, not ${maxPositions}`);
  }
  const tokenizerFiles = await copyTokenizer(network.tokenizerDir, work, '');
  // Beside the tokenizer of another model lies the projector of that.
  const own = network.tokenizerOf === undefined ? await existing(join(network.tokenizerDir, 'projector')) : undefined;
  const projector = options.projector ?? own;
  if (options.encoder !== undefined && projector === undefined) {
    throw new ServingError('config_invalid', 'an encoder is of no use without a projector: name one');
  }
  const context =
    projector === undefined
      ? undefined
      : await writeContext({ options, projector, spec, network, tokenizerFiles, format: formats.encoder, work });
  const { layers, vocabulary, floats } = formats;
  const graphOf = (matrices: LayerFormats) =>
    buildDecoder(spec, weights, { layers: matrices, vocabulary, maxPositions, floats });
  const llm = { spec, maxPositions, files: await writePart(options, work, 'llm', graphOf(layers)) };
  const prefillPrecision = options.prefillPrecision ?? (formats.layers === 'fp32' ? 'same' : 'w8a8');
  if (floats === 'float16' && prefillPrecision === 'w8a8') {
    throw new ServingError('config_invalid', 'weights of w8a8 compute with 32-bit floats: not with --precision fp16');
  }
  const prefill =
    prefillPrecision === 'w8a8'
      ? { files: await writePart(options, work, 'prefill', graphOf(PROMPT_FORMATS)) }
      : undefined;
  const tokenizer = { of: network.tokenizerOf, files: [...tokenizerFiles, ...(context?.ownTokenizer ?? [])] };
  const parts = { llm, prefill, context: context?.manifest, tokenizer };
  return {
    format: FORMAT,
    name: options.name ?? network.name,
    precision: options.precision,
    fingerprint: fingerprintOf(allFiles(parts)),
    ...parts,
  };
}

interface ContextSource {
  readonly options: ExportOptions;
  readonly projector: string | TensorSource;
  /** The language model: where soft tokens go, and the encoder if none is named. */
  readonly network: Network;
  readonly spec: DecoderSpec;
  readonly tokenizerFiles: readonly BundleFile[];
  readonly format: TableFormat;
  readonly work: string;
}

/** Encoder and projector, and the tokenizer if the encoder has its own. */
async function writeContext(
  from: ContextSource,
): Promise<{ manifest: NonNullable<Manifest['context']>; ownTokenizer: BundleFile[] }> {
  const { options, projector, network, spec: llm, format, work } = from;
  await using own = typeof options.encoder === 'string' ? await openNetwork(options.encoder) : options.encoder;
  const { spec, weights } = own ?? network;
  await using checkpoint = typeof projector === 'string' ? await Checkpoint.open(projector) : undefined;
  const projectorWeights = checkpoint ?? (projector as TensorSource);
  const projectorSpec = readProjectorSpec(projectorWeights);
  assertProjectorFits(projectorWeights, projectorSpec, spec.hidden, llm.hidden);
  const config = typeof projector === 'string' ? await readProjectorConfig(await configBeside(projector)) : {};
  const asked = {
    pooling: options.encoderPooling,
    maxTokens: options.encoderMaxTokens,
    recipe: options.encoderRecipe,
    modality: options.encoderModality,
  };
  const settings = encoderSettings(spec, config, asked);
  const graph = buildEncoder(spec, weights, { weights: format, ...settings });
  const encoderFiles = await writePart(options, work, 'encoder', graph);
  const ownTokenizer = own === undefined ? [] : await copyTokenizer(own.tokenizerDir, work, 'encoder/');
  const tokenizer = (own === undefined ? from.tokenizerFiles : ownTokenizer)[0]!;
  const encoder: EncoderManifest = {
    kind: spec.architecture,
    dim: spec.hidden,
    ...settings,
    tokenizer: tokenizer.path,
    files: encoderFiles,
  };
  const files = await writePart(options, work, 'projector', buildProjector(projectorWeights));
  return {
    manifest: {
      fingerprint: contextFingerprintOf(encoder, tokenizer, files, llm.hidden),
      encoder,
      projector: { widths: [...projectorSpec.widths], parameters: projectorParameters(projectorSpec), files },
    },
    ownTokenizer,
  };
}

async function writePart(
  options: ExportOptions,
  work: string,
  part: ExportProgress['part'],
  graph: Graph,
): Promise<BundleFile[]> {
  await mkdir(join(work, part), { recursive: true });
  const { signal, onProgress } = options;
  const written = await writeModel(graph, join(work, part), {
    signal,
    onProgress: (done, total) => onProgress?.({ part, done, total }),
  });
  return written.map(({ name, ...rest }) => ({ path: `${part}/${name}`, ...rest }));
}

function decoderSpec({ name, spec }: Network): DecoderSpec {
  if (isDecoder(spec)) return spec;
  throw new ServingError('checkpoint_invalid', `${name}: ${spec.architecture} is an encoder, not a language model`);
}

async function configBeside(projector: string): Promise<string> {
  const isFolder = (await stat(projector)).isDirectory();
  return join(isFolder ? projector : dirname(projector), 'config.json');
}

/** `tokenizer.json`, first, and `tokenizer_config.json` if there is one, into the bundle under `prefix`. */
async function copyTokenizer(from: string, work: string, prefix: '' | 'encoder/'): Promise<BundleFile[]> {
  const copied: BundleFile[] = [];
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    const bytes = await readFile(join(from, name)).catch(() => undefined);
    if (!bytes) continue;
    await writeFile(join(work, prefix, name), bytes);
    copied.push({ path: prefix + name, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') });
  }
  if (copied[0]?.path !== `${prefix}tokenizer.json`) {
    throw new ServingError(
      'checkpoint_invalid',
      `${from}: tokenizer.json is missing: save the tokenizer in that format`,
    );
  }
  return copied;
}

const existing = async (path: string) => ((await stat(path).catch(() => undefined)) ? path : undefined);

/** Only a bundle or an empty folder is replaced, never anything else of the user's. */
async function assertTarget(to: string): Promise<void> {
  const entry = await stat(to).catch(() => undefined);
  if (!entry) return;
  const names = entry.isDirectory() ? await readdir(to) : ['a file'];
  // Web pages have a manifest.json too.
  const manifest = await readFile(join(to, 'manifest.json'), 'utf8').catch(() => '');
  if (names.length > 0 && !manifest.includes(dirname(FORMAT))) {
    throw new ServingError('config_invalid', `${to} exists and is not a model bundle: choose another folder`);
  }
}

async function putInPlace(work: string, to: string): Promise<void> {
  const old = (await existing(to)) && `${work}.old`;
  if (old) await rename(to, old);
  try {
    await rename(work, to);
  } catch (error) {
    if (old) await rename(old, to);
    throw error;
  }
  if (old) await rm(old, { recursive: true, force: true });
}
