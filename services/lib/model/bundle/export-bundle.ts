/**
 * Makes a model bundle from Hugging Face folders. The bundle appears whole or not at all: it is written into a folder
 * beside its place, which is then renamed. The same input gives the same fingerprint.
 */
import { createHash, randomUUID } from 'node:crypto';
import { readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { makeFolder } from '../../process/os-errors.ts';
import type { TensorSource } from '../checkpoint/checkpoint.ts';
import { openSourceNetwork, type SourceNetwork } from '../checkpoint/source-network.ts';
import { type DecoderSpec, isDecoder } from '../checkpoint/spec.ts';
import { buildDecoder } from '../graph/decoder.ts';
import { buildEncoder, type Pooling } from '../graph/encoder.ts';
import type { Graph } from '../graph/graph.ts';
import type { LayerFormats, TableFormat } from '../graph/linear.ts';
import { writeModel } from '../graph/onnx.ts';
import {
  assertProjectorFits,
  buildProjector,
  openProjector,
  projectorParameters,
  readProjectorSpec,
} from '../graph/projector.ts';
import {
  allFiles,
  type BundleFile,
  contextFingerprintOf,
  type EncoderManifest,
  FORMAT,
  fingerprintOf,
  KV_SCALES,
  type Manifest,
} from './bundle.ts';
import type { Precision, PrefillPrecision, SoftPerChunk } from './choices.ts';
import { encoderSettings, readProjectorConfig } from './encoder-settings.ts';
import { PROMPT_FORMATS, weightFormats } from './weight-formats.ts';

interface ExportProgress {
  readonly part: 'llm' | 'prefill' | 'encoder' | 'projector';
  /** Bytes of weights written so far, and bytes of all weights of this part. */
  readonly done: number;
  readonly total: number;
}

export interface ExportOptions {
  /**
   * The language model, its GGUF file, or its Hugging Face folder, whose `projector/`, if any, is used when no
   * projector is named.
   */
  readonly llm: string | SourceNetwork;
  /** The encoder, or its Hugging Face folder. Without one the language model encodes, if there is a projector. */
  readonly encoder?: string | SourceNetwork;
  /** A LlavaCode projector, its safetensors file, or a folder with `model.safetensors`. */
  readonly projector?: string | TensorSource;
  /** The bundle's folder. A bundle that is already there is replaced. */
  readonly to: string;
  readonly precision: Precision;
  /** `w8a8` by default if `precision` quantises and computes in 32 bits, otherwise `same`. */
  readonly prefillPrecision?: PrefillPrecision;
  /** Measures the scales of KV in int8; without it KV lies as the graphs compute it. */
  readonly kvScales?: (draft: KvDraft) => Promise<Float32Array>;
  /** Name under which the model is served: by default that of the language model's folder. */
  readonly name?: string;
  /** Weights that share a scale when they are quantised: by default those of the source if it has any, else 128. */
  readonly block?: number;
  readonly encoderPooling?: Pooling;
  /** How a language model encodes a chunk (see encoder-settings.ts). */
  readonly encoderRecipe?: EncoderManifest['recipe'];
  /** Whether UniXcoder reads a chunk's source or its syntax tree. */
  readonly encoderModality?: EncoderManifest['modality'];
  /** The most tokens of a chunk that the encoder reads. */
  readonly encoderMaxTokens?: number;
  /** Soft tokens of one chunk: by default what the projector was trained for, else 1. */
  readonly softPerChunk?: SoftPerChunk;
  /** Longest sequence, in tokens: by default what the model was trained for, at most 32768. */
  readonly maxPositions?: number;
  readonly onProgress?: (progress: ExportProgress) => void;
  readonly signal?: AbortSignal;
}

/** A language model that is written, but for the scales of its KV. */
export interface KvDraft {
  readonly spec: DecoderSpec;
  /** Path of the graph that computes prompts. */
  readonly graph: string;
  readonly maxPositions: number;
  readonly tokenizerDir: string;
}

const DEFAULT_MAX_POSITIONS = 32_768;

/**
 * Writes a bundle.
 * @throws ServingError checkpoint_invalid, projector_invalid or config_invalid; the signal's reason when aborted. In
 *   all these cases the bundle's place is left as it was.
 */
export async function exportBundle(options: ExportOptions): Promise<Manifest> {
  const to = resolve(options.to);
  await assertTarget(to);
  const work = join(dirname(to), `.${basename(to)}.${randomUUID()}`);
  await makeFolder(work);
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
  await using network = typeof options.llm === 'string' ? await openSourceNetwork(options.llm) : options.llm;
  const { weights } = network;
  const spec = decoderSpec(network);
  const formats = weightFormats(options.precision, spec.layers, options.block ?? network.block);
  const maxPositions = options.maxPositions ?? Math.min(spec.maxPositions, DEFAULT_MAX_POSITIONS);
  if (maxPositions > spec.maxPositions) {
    throw new ServingError(
      'config_invalid',
      `the model has ${spec.maxPositions} positions, fewer than the ${maxPositions} asked for`,
    );
  }
  const tokenizerFiles = await copyTokenizer(network.tokenizerDir, work, '');
  // A projector that lies beside a borrowed tokenizer belongs to that other model.
  const own = network.tokenizerOf === undefined ? await existing(join(network.tokenizerDir, 'projector')) : undefined;
  const projector = options.projector ?? own;
  if (options.encoder !== undefined && projector === undefined) {
    throw new ServingError('config_invalid', 'an encoder is of no use without a projector: name one with --projector');
  }
  const context =
    projector === undefined
      ? undefined
      : await writeContext({ options, projector, spec, network, tokenizerFiles, format: formats.encoder, work });
  const { layers, vocabulary, floats } = formats;
  if (floats === 'float16' && options.kvScales !== undefined) {
    throw new ServingError(
      'config_invalid',
      `--kv int8 is for the CPU and cannot go with --precision ${options.precision}, which is for GPUs`,
    );
  }
  const int8Kv = options.kvScales !== undefined;
  const graphOf = (matrices: LayerFormats) =>
    buildDecoder(spec, weights, { layers: matrices, vocabulary, maxPositions, floats, int8Kv });
  const llm = { spec, maxPositions, files: await writePart(options, work, 'llm', graphOf(layers)) };
  const canRound = floats !== 'float16' && layers !== 'fp32';
  const prefillPrecision = options.prefillPrecision ?? (canRound ? 'w8a8' : 'same');
  if (floats === 'float16' && prefillPrecision === 'w8a8') {
    throw new ServingError(
      'config_invalid',
      `--prefill-precision w8a8 computes with 32-bit floats and cannot go with --precision ${options.precision}`,
    );
  }
  const prefill =
    prefillPrecision === 'w8a8'
      ? { files: await writePart(options, work, 'prefill', graphOf(PROMPT_FORMATS)) }
      : undefined;
  const draft = {
    spec,
    graph: join(work, prefill ? 'prefill' : 'llm', 'model.onnx'),
    maxPositions,
    tokenizerDir: work,
  };
  const kv = options.kvScales && { form: 'int8' as const, files: [await writeScales(options.kvScales(draft), work)] };
  const tokenizer = { of: network.tokenizerOf, files: [...tokenizerFiles, ...(context?.ownTokenizer ?? [])] };
  const parts = { llm, prefill, kv, context: context?.manifest, tokenizer };
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
  /** The language model, which takes the soft tokens, and which is the encoder if no other is named. */
  readonly network: SourceNetwork;
  readonly spec: DecoderSpec;
  readonly tokenizerFiles: readonly BundleFile[];
  readonly format: TableFormat;
  readonly work: string;
}

/** Writes encoder and projector, and the encoder's tokenizer if it has one of its own. */
async function writeContext(
  from: ContextSource,
): Promise<{ manifest: NonNullable<Manifest['context']>; ownTokenizer: BundleFile[] }> {
  const { options, projector, network, spec: llm, format, work } = from;
  await using own = typeof options.encoder === 'string' ? await openSourceNetwork(options.encoder) : options.encoder;
  const { name, spec, weights } = own ?? network;
  await using checkpoint = typeof projector === 'string' ? await openProjector(projector) : undefined;
  const projectorWeights = checkpoint ?? (projector as TensorSource);
  const projectorSpec = readProjectorSpec(projectorWeights);
  assertProjectorFits(projectorWeights, projectorSpec, spec.hidden, llm.hidden);
  const config = typeof projector === 'string' ? await readProjectorConfig(await configBeside(projector)) : {};
  const asked = {
    pooling: options.encoderPooling,
    maxTokens: options.encoderMaxTokens,
    recipe: options.encoderRecipe,
    modality: options.encoderModality,
    softPerChunk: options.softPerChunk,
  };
  const { softPerChunk, ...settings } = encoderSettings(spec, config, asked);
  const graph = buildEncoder(spec, weights, { weights: format, ...settings, softPerChunk });
  const encoderFiles = await writePart(options, work, 'encoder', graph);
  const ownTokenizer = own === undefined ? [] : await copyTokenizer(own.tokenizerDir, work, 'encoder/');
  const tokenizer = (own === undefined ? from.tokenizerFiles : ownTokenizer)[0]!;
  const encoder: EncoderManifest = {
    kind: spec.architecture,
    name,
    layers: spec.layers,
    dim: spec.hidden,
    ...settings,
    tokenizer: tokenizer.path,
    files: encoderFiles,
  };
  const files = await writePart(options, work, 'projector', buildProjector(projectorWeights));
  return {
    manifest: {
      fingerprint: contextFingerprintOf(encoder, tokenizer, files, llm.hidden, softPerChunk ?? 1),
      ...(softPerChunk && { soft_per_chunk: softPerChunk }),
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
  await makeFolder(join(work, part));
  const { signal, onProgress } = options;
  const written = await writeModel(graph, join(work, part), {
    signal,
    onProgress: (done, total) => onProgress?.({ part, done, total }),
  });
  return written.map(({ name, ...rest }) => ({ path: `${part}/${name}`, ...rest }));
}

async function writeScales(measured: Promise<Float32Array>, work: string): Promise<BundleFile> {
  const scales = await measured;
  const bytes = new Uint8Array(scales.buffer, scales.byteOffset, scales.byteLength);
  await makeFolder(join(work, dirname(KV_SCALES)));
  await writeFile(join(work, KV_SCALES), bytes);
  return { path: KV_SCALES, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

function decoderSpec({ name, spec }: SourceNetwork): DecoderSpec {
  if (isDecoder(spec)) return spec;
  const what = `${name}: ${spec.architecture} is an encoder, not a language model`;
  throw new ServingError('checkpoint_invalid', what, { remedy: 'Name a language model.' });
}

async function configBeside(projector: string): Promise<string> {
  const isFolder = (await stat(projector)).isDirectory();
  return join(isFolder ? projector : dirname(projector), 'config.json');
}

/**
 * Copies `tokenizer.json` and, if there is one, `tokenizer_config.json` into the bundle under `prefix`, in this order.
 */
async function copyTokenizer(from: string, work: string, prefix: '' | 'encoder/'): Promise<BundleFile[]> {
  const copied: BundleFile[] = [];
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    const bytes = await readFile(join(from, name)).catch(() => undefined);
    if (!bytes) continue;
    await writeFile(join(work, prefix, name), bytes);
    copied.push({ path: prefix + name, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') });
  }
  if (copied[0]?.path !== `${prefix}tokenizer.json`) {
    const remedy = 'Save the tokenizer in that format.';
    throw new ServingError('checkpoint_invalid', `${from} has no tokenizer.json`, { remedy });
  }
  return copied;
}

const existing = async (path: string) => ((await stat(path).catch(() => undefined)) ? path : undefined);

/** Lets a bundle or an empty folder be replaced, and nothing else that belongs to the user. */
async function assertTarget(to: string): Promise<void> {
  const entry = await stat(to).catch(() => undefined);
  if (!entry) return;
  const names = entry.isDirectory() ? await readdir(to) : ['a file'];
  // A manifest.json alone proves nothing: web pages have one too.
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
