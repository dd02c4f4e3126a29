/**
 * A model bundle: one folder with everything that a service loads, described by its `manifest.json`.
 *
 *     manifest.json [, manifest.sig]  tokenizer.json  tokenizer_config.json
 *     llm/model.onnx, model.bin
 *     prefill/model.onnx, model.bin                      the same network with weights for prompts, if those differ
 *     kv/scales.bin                                      what a level of 8 bits is worth, if KV lies in those
 *     encoder/model.onnx, model.bin [, tokenizer.json]   both or neither: without them repository context
 *     projector/model.onnx, model.bin                    works as text only (see contextLack)
 */
import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../process/errors.ts';
import { reasonOf } from '../../process/os-errors.ts';
import { decoderSpecSchema } from '../checkpoint/spec.ts';
import {
  ENCODER_MODALITIES,
  ENCODER_RECIPES,
  POOLINGS,
  PRECISIONS,
  SOFT_PER_CHUNK,
  type SoftPerChunk,
} from './choices.ts';
import { assertSigned, readSigner } from './signature.ts';

/** The number grows with the inputs of the graphs: a session feeds those of its own version only. */
export const FORMAT = 'llavacode-bundle/2';
/** Path of the scales of int8 KV. */
export const KV_SCALES = 'kv/scales.bin';
const count = z.number().int().positive();
const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'must be a SHA-256 in hex');
const filePath = z.string().regex(/^(?!\.)[\w.-]+(\/(?!\.)[\w.-]+)*$/, 'must be a path within the bundle');

const fileSchema = z.object({ path: filePath, bytes: z.number().int().nonnegative(), sha256 });
/** A file of the bundle, with its path inside. */
export type BundleFile = z.output<typeof fileSchema>;
const files = z.array(fileSchema).min(1);

const encoderSchema = z.object({
  kind: z.enum(['qwen2', 'llama', 'qwen3', 'roberta', 'bert', 'jina']),
  /** Name of the network, and how many layers it has: older bundles do not say. Vectors do not depend on the name. */
  name: z.string().optional(),
  layers: count.optional(),
  /** Number of values in one embedding. */
  dim: count,
  /** Tokens of the longest input, special tokens included. */
  maxTokens: count,
  pooling: z.enum(POOLINGS),
  /** Whether embeddings are scaled to length 1. */
  normalize: z.boolean(),
  /** `text` is the chunk as it is; `unixcoder` is `<s><encoder-only></s>`, the chunk, `</s>`. */
  input: z.enum(['text', 'unixcoder']),
  /** Whether the tokenizer's own template is applied. */
  addSpecialTokens: z.boolean(),
  /**
   * With `published` the end-of-text token follows the text, and `last` pools there; with `authors` nothing follows.
   */
  recipe: z.enum(ENCODER_RECIPES).default('authors'),
  /** Whether a chunk's source is read, or its syntax tree if it parses. */
  modality: z.enum(ENCODER_MODALITIES).default('source'),
  /** Text before a query, but not before a chunk, in dense retrieval. */
  queryPrefix: z.string().default(''),
  /** Path of the encoder's tokenizer in the bundle: the language model's, or one of its own. */
  tokenizer: filePath,
  files,
});
export type EncoderManifest = z.output<typeof encoderSchema>;

export const manifestSchema = z.object({
  format: z.literal(
    FORMAT,
    `must be ${FORMAT}: make a bundle of another version again, with llavacode export or synth`,
  ),
  name: z.string().min(1),
  precision: z.enum(PRECISIONS),
  /** A digest of all files: two workers with the same fingerprint compute the same. */
  fingerprint: sha256,
  llm: z.object({
    spec: decoderSpecSchema,
    /** Longest sequence, prompt and output together, in tokens. */
    maxPositions: count,
    files,
  }),
  /** The language model for prompts, with weights and activations of 8 bits. */
  prefill: z.object({ files }).optional(),
  /**
   * KV in int8. The file has a float32 for each channel: [layers, K or V, kv_heads, head_dim], little-endian.
   */
  kv: z.object({ form: z.literal('int8'), files }).optional(),
  /** The networks that turn chunks into soft tokens. */
  context: z
    .object({
      /** A digest of all that a soft token depends on: rows with different fingerprints do not mix. */
      fingerprint: sha256,
      /** Soft tokens of one chunk; a chunk has one where nothing is said. */
      soft_per_chunk: z.literal(SOFT_PER_CHUNK).optional(),
      encoder: encoderSchema,
      projector: z.object({ widths: z.array(count).min(3), parameters: count, files }),
    })
    .optional(),
  tokenizer: z.object({
    /** The model that the tokenizer belongs to, if this model's weights are random. */
    of: z.string().optional(),
    files,
  }),
});
export type Manifest = z.output<typeof manifestSchema>;

/** The type in which the language model's graphs compute. */
export const floatsOf = ({ precision }: Pick<Manifest, 'precision'>) =>
  precision.endsWith('fp16') ? 'float16' : 'float32';

/** Kinds of devices that compute; `plugin` is a provider of which only its library is known. */
type DeviceKind = 'cpu' | 'webgpu' | 'cuda' | 'plugin';

/** The precisions that every kind of device computes whole. */
const EVERYWHERE = PRECISIONS.filter((precision) => floatsOf({ precision }) === 'float16');

type Named = Pick<Manifest, 'name' | 'precision' | 'kv'>;

/**
 * Says to people why a kind of device cannot compute a bundle's language model whole, and what to do; undefined if it
 * can. The CPU and WebGPU compute every precision, CUDA only 16 bits: its attention takes no others. What a plugin can
 * do is known when it has been tried. int8 KV is for the CPU.
 */
export const deviceLack = ({ name, precision, kv }: Named, kind: DeviceKind): string | undefined => {
  if (kv !== undefined && kind !== 'cpu') {
    return `${name} has int8 KV, which only the CPU computes: export it without --kv int8, or use --provider cpu`;
  }
  return kind === 'cuda' && floatsOf({ precision }) !== 'float16'
    ? `${name} has precision ${precision}, and CUDA computes attention in 16 bits only: export it with one of ` +
        `--precision ${EVERYWHERE.join(', ')}, or use --provider webgpu or cpu`
    : undefined;
};

/** @throws ServingError config_invalid for a bundle that this kind of device cannot compute whole. */
export function assertRunsOn(manifest: Named, kind: DeviceKind): void {
  const lack = deviceLack(manifest, kind);
  if (lack !== undefined) throw new ServingError('config_invalid', lack);
}

/**
 * The part of a bundle whose weights compute prompts on a device: W8A8 is for the CPU, because GPUs have no kernel for
 * it and would leave every matrix to the CPU.
 */
export const promptPart = ({ prefill }: Pick<Manifest, 'prefill'>, kind: DeviceKind): 'prefill' | 'llm' =>
  prefill !== undefined && kind === 'cpu' ? 'prefill' : 'llm';

export interface Bundle {
  readonly dir: string;
  readonly manifest: Manifest;
  /** Path of the decoder's graph. */
  readonly llm: string;
  /** Path of the decoder's graph for prompts: the same path if the bundle has no other graph for them. */
  readonly prefill: string;
  /** Path of the scales of int8 KV; undefined where KV lies in floats. */
  readonly kvScales: string | undefined;
  /** Folder with `tokenizer.json` and, if there is one, `tokenizer_config.json`. */
  readonly tokenizerDir: string;
  /** Paths of the encoder's and the projector's graphs, and the folder of the encoder's tokenizer. */
  readonly context: { readonly encoder: string; readonly tokenizerDir: string; readonly projector: string } | undefined;
}

/** Says to people what a bundle cannot do for want of encoder and projector; undefined if it has both. */
export const contextLack = ({ context }: Pick<Manifest, 'context'>): string | undefined =>
  context === undefined
    ? 'no encoder and projector: compressed context is off; repository context works as text, searched with ' +
      'jaccard or bm25. For compressed context train a projector and export the model with --projector'
    : undefined;

/** Soft tokens of one chunk, as a bundle with encoder and projector makes them. */
export const softPerChunkOf = ({ context }: Pick<Manifest, 'context'>): SoftPerChunk => context?.soft_per_chunk ?? 1;

/** One SHA-256 over all files, independent of their order. */
export function fingerprintOf(files: readonly BundleFile[]): string {
  const lines = files.map((file) => `${file.path} ${file.sha256}\n`).sort();
  return createHash('sha256').update(lines.join('')).digest('hex');
}

/** One SHA-256 over everything that the vectors of chunks depend on. */
export function contextFingerprintOf(
  encoder: EncoderManifest,
  encoderTokenizer: BundleFile,
  projectorFiles: readonly BundleFile[],
  hidden: number,
  softPerChunk: SoftPerChunk,
): string {
  const { kind, maxTokens, pooling, normalize, input, addSpecialTokens, recipe, modality } = encoder;
  const graphs = fingerprintOf([...encoder.files, ...projectorFiles]);
  const form = [kind, maxTokens, pooling, normalize, input, addSpecialTokens, recipe, modality];
  // With one soft token per chunk it is that of bundles from before there could be more.
  const parts = [graphs, encoderTokenizer.sha256, ...form, hidden, ...(softPerChunk > 1 ? [softPerChunk] : [])];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}

export function allFiles(parts: Pick<Manifest, 'llm' | 'prefill' | 'kv' | 'context' | 'tokenizer'>): BundleFile[] {
  const { llm, prefill, kv, context, tokenizer } = parts;
  return [
    ...llm.files,
    ...(prefill?.files ?? []),
    ...(kv?.files ?? []),
    ...(context?.encoder.files ?? []),
    ...(context?.projector.files ?? []),
    ...tokenizer.files,
  ];
}

export type BundlePart = 'llm' | 'prefill' | 'encoder' | 'projector' | 'tokenizer';

/**
 * The files of parts of a bundle; prompts may have no weights of their own, and a bundle no encoder or projector. The
 * scales of KV belong to the weights.
 */
export function filesOf(
  { llm, prefill, kv, context, tokenizer }: Manifest,
  parts: readonly BundlePart[],
): BundleFile[] {
  const scales = kv?.files ?? [];
  const files: Record<BundlePart, readonly BundleFile[]> = {
    llm: [...llm.files, ...scales],
    prefill: [...(prefill?.files ?? llm.files), ...scales],
    encoder: context?.encoder.files ?? [],
    projector: context?.projector.files ?? [],
    tokenizer: tokenizer.files,
  };
  return parts.flatMap((part) => files[part]);
}

const invalid = (dir: string, what: string, cause?: unknown) =>
  new ServingError('bundle_invalid', `${dir}: ${what}`, { cause });

interface OpenOptions {
  /** PEM file of the public key whose owner must have signed the bundle; '' if it need not be signed. */
  readonly requireSigned?: string;
  /** The setting that names the key. */
  readonly flag?: string;
}

/**
 * Opens a bundle. Checked are its signature where one is required, the manifest with its fingerprints, that every file
 * is there in its full size, and that no tokenizer would read a file that the manifest does not have. The contents are
 * not read: integrity.ts does that.
 * @throws ServingError bundle_invalid; config_invalid for a key that is none.
 */
export async function openBundle(
  dir: string,
  { requireSigned = '', flag = '--require-signed' }: OpenOptions = {},
): Promise<Bundle> {
  const bytes = await readManifestBytes(dir);
  if (requireSigned !== '') await assertSigned(dir, bytes, await readSigner(flag, requireSigned));
  const manifest = parseManifest(dir, bytes);
  for (const { path, bytes } of allFiles(manifest)) {
    const found = await stat(join(dir, path)).catch(() => undefined);
    if (!found?.isFile()) throw invalid(dir, `${path} is missing`);
    if (found.size !== bytes) throw invalid(dir, `${path} has ${found.size} bytes, and the manifest says ${bytes}`);
  }
  const { context } = manifest;
  await assertNoStrayTokenizer(dir, manifest);
  return {
    dir,
    manifest,
    llm: join(dir, 'llm/model.onnx'),
    prefill: join(dir, manifest.prefill ? 'prefill/model.onnx' : 'llm/model.onnx'),
    kvScales: manifest.kv && join(dir, KV_SCALES),
    tokenizerDir: dir,
    context: context && {
      encoder: join(dir, 'encoder/model.onnx'),
      tokenizerDir: join(dir, dirname(context.encoder.tokenizer)),
      projector: join(dir, 'projector/model.onnx'),
    },
  };
}

/**
 * The manifest as it is written: what is signed.
 * @throws ServingError bundle_invalid
 */
export async function readManifestBytes(dir: string): Promise<Buffer> {
  return readFile(join(dir, 'manifest.json')).catch((error) => {
    throw invalid(dir, `manifest.json cannot be read: ${reasonOf(error)}`, error);
  });
}

/** Tokenizers read it if it is there: one that nobody has vouched for must not change what texts mean. */
async function assertNoStrayTokenizer(dir: string, manifest: Manifest): Promise<void> {
  const listed = new Set(allFiles(manifest).map(({ path }) => path));
  const encoder = manifest.context && dirname(manifest.context.encoder.tokenizer);
  const folders = encoder === undefined || encoder === '.' ? [''] : ['', `${encoder}/`];
  for (const path of folders.map((folder) => `${folder}tokenizer_config.json`)) {
    if (listed.has(path)) continue;
    const found = await stat(join(dir, path)).catch(() => undefined);
    if (found) throw invalid(dir, `${path} is not in the manifest: remove it, or make the bundle again`);
  }
}

/** @throws ServingError bundle_invalid */
function parseManifest(dir: string, bytes: Buffer): Manifest {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw invalid(dir, `manifest.json cannot be read: ${reasonOf(error)}`, error);
  }
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw invalid(dir, `manifest.json: ${problems.join('; ')}`);
  }
  const paths = new Set(allFiles(parsed.data).map(({ path }) => path));
  const { context, prefill, kv } = parsed.data;
  const graphs = ['llm', ...(prefill ? ['prefill'] : []), ...(context ? ['encoder', 'projector'] : [])];
  const needed = [...graphs.map((part) => `${part}/model.onnx`), 'tokenizer.json'];
  if (kv) needed.push(KV_SCALES);
  if (context) needed.push(context.encoder.tokenizer);
  for (const path of needed) if (!paths.has(path)) throw invalid(dir, `manifest.json does not list ${path}`);
  assertFingerprints(dir, parsed.data);
  return parsed.data;
}

/** @throws ServingError bundle_invalid for a manifest whose fingerprints are not those of the files that it lists. */
function assertFingerprints(dir: string, manifest: Manifest): void {
  const { fingerprint, context, llm } = manifest;
  const files = allFiles(manifest);
  const assertSame = (what: string, said: string, found: string) => {
    if (said !== found) throw invalid(dir, `its files have ${what} ${found}, and the manifest says ${said}`);
  };
  assertSame('fingerprint', fingerprint, fingerprintOf(files));
  if (context === undefined) return;
  const { encoder, projector } = context;
  const tokenizer = files.find(({ path }) => path === encoder.tokenizer)!;
  const found = contextFingerprintOf(encoder, tokenizer, projector.files, llm.spec.hidden, softPerChunkOf(manifest));
  assertSame('context fingerprint', context.fingerprint, found);
}
