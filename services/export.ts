/**
 * `llavacode export`, `synth`, `bundle verify` and `bundle sign`: makes bundles, checks and signs them, with progress
 * on the terminal. With --verify an export also measures what quantisation costs.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { globby } from 'globby';
import { openCpuKv } from './lib/engine/bundle-kv.ts';
import { measureKvScales } from './lib/engine/kv-scales.ts';
import { DecoderSession } from './lib/engine/session.ts';
import { KvPool } from './lib/kv/pool.ts';
import { allFiles, contextLack, openBundle, readManifestBytes } from './lib/model/bundle/bundle.ts';
import type { KvForm } from './lib/model/bundle/choices.ts';
import {
  type Divergence,
  type GraphPair,
  type LogitsRunner,
  measureDivergence,
} from './lib/model/bundle/divergence.ts';
import { type ExportOptions, exportBundle, type KvDraft } from './lib/model/bundle/export-bundle.ts';
import { verifyBundle } from './lib/model/bundle/integrity.ts';
import { readSigner, signManifest } from './lib/model/bundle/signature.ts';
import { slowOnCuda } from './lib/model/bundle/weight-formats.ts';
import { type EncoderShape, synthesize, synthesizeEncoder, synthesizeProjector } from './lib/model/checkpoint/synth.ts';
import { ServingError } from './lib/process/errors.ts';
import { interruption } from './lib/process/interrupt.ts';
import { PACKAGE_ROOT } from './lib/process/package-root.ts';
import { startProgress } from './lib/process/progress.ts';
import { NO_SOFT_TOKENS } from './lib/request/token-prompt.ts';
import { loadTokenizer } from './lib/text/tokenizer.ts';

/** Measurements are made on real code, the sample repository, in so many sequences of so many tokens. */
const VERIFY = { tokens: 512, sequences: 8 };
/** Threads of the engine that measures. */
const THREADS = 2;

/** What the command line says, of which the form of KV is a word. */
type WordedOptions = Omit<ExportOptions, 'kvScales'> & { readonly kv?: KvForm };

interface SynthOptions extends Omit<WordedOptions, 'llm' | 'encoder'> {
  /** Name of a published shape, or path of a config.json. */
  readonly llm: string;
  readonly encoder: EncoderShape;
  readonly seed: number;
}

/** Makes a bundle of a published shape with seeded random weights, for benchmarks. */
export async function runSynth({ seed, ...options }: SynthOptions) {
  const llm = await synthesize(options.llm, seed);
  const encoder = synthesizeEncoder(options.encoder, seed);
  const projector = synthesizeProjector(encoder.spec.hidden, llm.spec.hidden, seed);
  return runExport({ ...options, llm, encoder, projector, encoderMaxTokens: 512 }, false);
}

/** @param verify measure what quantisation costs: only for a language model that lies in a folder. */
export async function runExport({ kv, ...options }: WordedOptions, verify: boolean) {
  const progress = startProgress('exporting');
  const signal = interruption();
  try {
    const manifest = await exportBundle({
      ...options,
      ...(kv === 'int8' && { kvScales: sampleKvScales }),
      signal,
      onProgress: ({ part, done, total }) => {
        progress.update(`${part}: ${mib(done)} of ${mib(total)} MiB`);
      },
    });
    progress.succeed(
      `${options.to}: ${manifest.name}, ${manifest.precision}, fingerprint ${manifest.fingerprint.slice(0, 16)}…`,
    );
    const lack = contextLack(manifest);
    if (lack) progress.warn(lack);
    const slow = slowOnCuda(manifest.llm.spec, manifest.precision, options.block);
    if (slow) progress.warn(slow);
    if (!verify || typeof options.llm !== 'string') return { manifest };
    progress.start('comparing with the model in 32-bit floats');
    const divergence = await divergenceOf(options.llm, options.to);
    const { klMean, klP99, top1Agreement, positions } = divergence;
    progress.succeed(
      `against fp32 on ${positions} positions: KL mean ${klMean.toExponential(2)}, p99 ${klP99.toExponential(2)} ` +
        `nats; top-1 agreement ${(top1Agreement * 100).toFixed(2)} %`,
    );
    return { manifest, divergence };
  } catch (error) {
    progress.fail();
    throw error;
  }
}

export interface BundleVerification {
  readonly name: string;
  readonly fingerprint: string;
  readonly files: number;
  readonly bytes: number;
  /** Id of the key whose owner has signed the bundle; undefined where none was asked about. */
  readonly signedBy?: string;
}

interface VerifyRun {
  readonly signal?: AbortSignal;
  /** PEM file of the public key whose owner must have signed the bundle. */
  readonly publicKey?: string | undefined;
  /** PEM file of the private key that signs the bundle when it is intact. */
  readonly signWith?: string;
}

/**
 * Reads every file of a bundle and compares it with the manifest; then signs it, if that is asked for.
 * @throws ServingError bundle_invalid, which names the file, and the digests expected and found, or says that the
 *   signature is missing or wrong; config_invalid for a key that is none; the signal's reason.
 */
export async function runBundleVerify(
  dir: string,
  { signal, publicKey, signWith }: VerifyRun = {},
): Promise<BundleVerification> {
  const progress = startProgress(`verifying ${dir}`);
  try {
    const manifest = await readManifestBytes(dir);
    const bundle = await openBundle(dir, { requireSigned: publicKey, flag: '--public-key' });
    await verifyBundle(bundle, {
      signal,
      onProgress: ({ path, done, total }) => {
        progress.update(`${path}: ${mib(done)} of ${mib(total)} MiB`);
      },
    });
    const { name, fingerprint } = bundle.manifest;
    const files = allFiles(bundle.manifest);
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    let signedBy = publicKey === undefined ? undefined : (await readSigner('--public-key', publicKey)).id;
    if (signWith !== undefined) {
      if (!manifest.equals(await readManifestBytes(dir))) {
        throw new ServingError('bundle_invalid', `${dir}: manifest.json changed while the files were read: sign again`);
      }
      signedBy = await signManifest(dir, manifest, signWith);
    }
    const by = signedBy === undefined ? '' : `, signed by key ${signedBy}`;
    progress.succeed(`${dir}: ${name}, ${files.length} files intact, fingerprint ${fingerprint.slice(0, 16)}…${by}`);
    return { name, fingerprint, files: files.length, bytes, ...(signedBy !== undefined && { signedBy }) };
  } catch (error) {
    progress.fail();
    throw error;
  }
}

/** Cuts ids into sequences for a measurement, from their beginning. */
const pieces = (ids: readonly number[]): number[][] =>
  Array.from({ length: VERIFY.sequences }, (_, i) => ids.slice(i * VERIFY.tokens, (i + 1) * VERIFY.tokens)).filter(
    (sequence) => sequence.length > 1,
  );

/**
 * Measures the scales of KV in int8 on the end of the sample repository: --verify compares on its beginning.
 * See {@link ExportOptions}.
 */
export async function sampleKvScales({ graph, spec, maxPositions, tokenizerDir }: KvDraft): Promise<Float32Array> {
  const ids = (await sampleIds(tokenizerDir)).slice(-VERIFY.tokens * VERIFY.sequences);
  const sequences = pieces(ids).map((sequence) => Int32Array.from(sequence.slice(0, maxPositions)));
  return measureKvScales(graph, spec, sequences, { threads: THREADS });
}

/** Token ids of the sample repository. */
async function sampleIds(tokenizerDir: string): Promise<number[]> {
  const tokenizer = await loadTokenizer(tokenizerDir);
  const sources = await globby('examples/**/*.py', { cwd: PACKAGE_ROOT });
  const texts = await Promise.all(sources.sort().map((file) => readFile(join(PACKAGE_ROOT, file), 'utf8')));
  return tokenizer.encode(texts.join('\n'), 'as text');
}

async function divergenceOf(llm: string, to: string): Promise<Divergence> {
  const bundle = await openBundle(to);
  const sequences = pieces(await sampleIds(bundle.tokenizerDir));
  return measureDivergence({ bundle, llm, sequences, open: openPair });
}

/** Loads a pair of decoder graphs, which share one KV pool. */
export async function openPair(graphs: GraphPair): Promise<LogitsRunner> {
  const { spec } = graphs.bundle.manifest.llm;
  const pool = new KvPool(await openCpuKv(graphs.bundle, 1, VERIFY.tokens));
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const prompt = await DecoderSession.load(graphs.prompt, shape, pool, { threads: THREADS, decodes: false });
  const decode = await DecoderSession.load(graphs.decode, shape, pool, { threads: THREADS });
  return {
    logits: async (ids) => {
      const half = Math.ceil(ids.length / 2);
      const head = Int32Array.from(ids.slice(0, half));
      const logitRows = Array.from(head, (_, i) => i);
      const all = new Float32Array(ids.length * spec.vocab);
      all.set(await prompt.chunk({ slot: 0, past: 0, ids: head, soft: NO_SOFT_TOKENS, logitRows }));
      for (const [i, id] of ids.slice(half).entries()) {
        all.set(await decode.step(Int32Array.of(id), Int32Array.of(half + i)), (half + i) * spec.vocab);
      }
      return all;
    },
    dispose: () => {
      prompt.dispose();
      decode.dispose();
    },
  };
}

const mib = (bytes: number) => Math.round(bytes / 2 ** 20);
