/** The whole system as real processes on free ports, for one test file; and the plain path to compare it with. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sampleKvScales } from '../../services/export.ts';
import { openCpuKv } from '../../services/lib/engine/bundle-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { type Bundle, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import type { KvForm, Precision } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { NO_SOFT_TOKENS, type SoftTokens } from '../../services/lib/request/token-prompt.ts';
import { loadRpcSecurity } from '../../services/lib/rpc/credentials.ts';
import { type Flags, type RunningSystem, type SystemOptions, startSystem } from '../../services/supervisor.ts';

export const TINY_CODER = join(import.meta.dirname, '..', '..', 'models', 'tiny-coder');
export const golden = (name: string) => join(import.meta.dirname, '..', 'goldens', name);

export interface TestSystem extends RunningSystem {
  /** Temporary folder of this system: `bundle`, `logs`, `store`. */
  readonly dir: string;
  readonly bundle: Bundle;
}

/** By what a test connects to the services of a system as one of them. */
export const memberOf = ({ rpcSecretFile }: Pick<RunningSystem, 'rpcSecretFile'>) =>
  loadRpcSecurity({ rpcCert: '', rpcKey: '', rpcCa: '', rpcSecretFile });

interface Made {
  readonly precision?: Precision;
  readonly kv?: KvForm;
}

/** Exports `llm`, in 32-bit floats if not told otherwise, and starts a system on it; `close` leaves nothing behind. */
export async function startTestSystem(
  llm: string,
  workers: Flags = {},
  { precision = 'fp32', kv = 'floats', ...options }: Partial<SystemOptions> & Made = {},
): Promise<TestSystem> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-system-'));
  const model = join(dir, 'bundle');
  await exportBundle({ llm, to: model, precision, ...(kv === 'int8' && { kvScales: sampleKvScales }) });
  const bundle = await openBundle(model);
  const system = await startSystem({
    mode: 'disaggregated',
    prefill: 1,
    decode: 1,
    logs: join(dir, 'logs'),
    ...options,
    gateway: { model, port: 0, store: `lmdb:${join(dir, 'store')}`, ...options.gateway },
    workers: { model, threads: 1, ...workers },
    ...(options.indexer && { indexer: { model, threads: 1, ...options.indexer } }),
  });
  return {
    ...system,
    dir,
    bundle,
    close: async () => {
      await system.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** The model by itself: one prompt chunk, then one sequence decoded alone. What every other path must equal. */
export class PlainModel {
  readonly #session: DecoderSession;
  readonly #vocab: number;

  private constructor(session: DecoderSession, vocab: number) {
    this.#session = session;
    this.#vocab = vocab;
  }

  static async load(bundle: Bundle, capacity = 1024): Promise<PlainModel> {
    const { spec } = bundle.manifest.llm;
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const pool = new KvPool(await openCpuKv(bundle, 1, capacity));
    const session = await DecoderSession.load(bundle.llm, shape, pool, { threads: 1 });
    return new PlainModel(session, spec.vocab);
  }

  /** Greedy continuation by `count` tokens. */
  async greedy(prompt: readonly number[], count: number, soft: SoftTokens = NO_SOFT_TOKENS): Promise<number[]> {
    const ids = Int32Array.from(prompt);
    const tokens: number[] = [];
    let logits = await this.#session.chunk({ slot: 0, past: 0, ids, soft, logitRows: [ids.length - 1] });
    while (true) {
      tokens.push(logits.subarray(0, this.#vocab).reduce((best, x, i, row) => (x > row[best]! ? i : best), 0));
      if (tokens.length === count) return tokens;
      logits = await this.#session.step(Int32Array.of(tokens.at(-1)!), Int32Array.of(ids.length + tokens.length - 1));
    }
  }

  /**
   * How much less likely than the likeliest each token of an output is, in nats, after the prompt and the tokens before
   * it. Where two devices round differently, equal tokens cannot be asked for, and this can.
   */
  async shortOfLikeliest(prompt: readonly number[], output: readonly number[]): Promise<number[]> {
    const ids = Int32Array.from([...prompt, ...output.slice(0, -1)]);
    const logitRows = output.map((_, i) => prompt.length - 1 + i);
    const logits = await this.#session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows });
    return output.map((token, i) => {
      const row = logits.subarray(i * this.#vocab, (i + 1) * this.#vocab);
      return row.reduce((a, b) => Math.max(a, b)) - row[token]!;
    });
  }

  dispose(): void {
    this.#session.dispose();
  }
}
