/**
 * Times the bare engine, without HTTP, RPC and scheduler. The times cover what a worker does for one prompt or for one
 * decode step, including greedy sampling.
 */
import { openCpuKv } from '../../services/lib/engine/bundle-kv.ts';
import { prepackedCache } from '../../services/lib/engine/load.ts';
import { prepackedGraph } from '../../services/lib/engine/prepacked.ts';
import { OutputHistory, sample } from '../../services/lib/engine/sampler.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { filesOf, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';

export interface SubjectOptions {
  /** Folder of the bundle. */
  readonly model: string;
  readonly threads: number;
  /** Let idle threads spin. */
  readonly spin: boolean;
  readonly slots: number;
  readonly capacity: number;
  /** The setting of that name: a folder, empty for the one in the bundle, or `off`. */
  readonly prepacked: string;
  /** The phase whose weights serve both phases, as in a worker; if not given, each phase has its own. */
  readonly weights?: 'prefill' | 'decode';
}

const QUIET = createLogger('bench', 'silent');

export class EngineSubject {
  /** Time in ms until both phases could run and the weights had been touched. */
  readonly loadMs: number;
  readonly vocab: number;
  readonly #prompts: DecoderSession;
  readonly #steps: DecoderSession;
  /** For each slot, the number of its first positions that hold the KV of {@link promptIds}. */
  readonly #filled: number[];

  /** Opens the verify runs of {@link #steps}. */
  readonly #openVerifier: () => Promise<string | undefined>;

  private constructor(
    prompts: DecoderSession,
    steps: DecoderSession,
    loadMs: number,
    openVerifier: () => Promise<string | undefined> = async () => 'none are opened here',
  ) {
    this.#openVerifier = openVerifier;
    this.#prompts = prompts;
    this.#steps = steps;
    this.loadMs = loadMs;
    this.vocab = steps.vocabSize;
    this.#filled = new Array<number>(steps.pool.slots).fill(0);
  }

  /** Times an engine that is loaded already. @param loadMs the time that this took. */
  static of(session: DecoderSession, loadMs: number): EngineSubject {
    return new EngineSubject(session, session, loadMs);
  }

  /** Both phases share one KV pool. They share the weights too if the bundle has one set, or if the options say so. */
  static async load(options: SubjectOptions): Promise<EngineSubject> {
    const bundle = await openBundle(options.model);
    const llm = options.weights === 'prefill' ? bundle.prefill : bundle.llm;
    const prefill = options.weights === 'decode' ? bundle.llm : bundle.prefill;
    const files = new FileGuard(QUIET);
    files.serveFrom(bundle.dir, filesOf(bundle.manifest, ['llm', 'prefill']));
    const prepacked = prepackedCache(bundle, options.prepacked, QUIET, files);
    // Prepacked weights are made once per machine, so the time for that is not part of loading.
    if (prepacked) for (const graph of new Set([llm, prefill])) await prepackedGraph(graph, prepacked);
    const startMs = performance.now();
    const { spec } = bundle.manifest.llm;
    const pool = new KvPool(await openCpuKv(bundle, options.slots, options.capacity));
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const settings = { threads: options.threads, spin: options.spin, prepacked } as const;
    const steps = await DecoderSession.load(llm, shape, pool, settings);
    const prompts =
      prefill === llm ? steps : await DecoderSession.load(prefill, shape, pool, { ...settings, decodes: false });
    await prompts.chunk({ slot: 0, past: 0, ids: Int32Array.of(0, 0), soft: NO_SOFT_TOKENS, logitRows: [1] });
    await steps.step(Int32Array.of(0), Int32Array.of(2));
    const loadMs = performance.now() - startMs;
    return new EngineSubject(prompts, steps, loadMs, () => steps.openVerifier(llm, settings));
  }

  /**
   * Opens verify runs.
   * @returns time of a run in ms, by its tokens.
   * @throws Error where there are none: with the reason.
   */
  async verifyRuns(): Promise<readonly (readonly [tokens: number, ms: number])[]> {
    const why = await this.#openVerifier();
    const { verifier } = this.#steps;
    if (verifier === undefined) throw new Error(`--verify-runs: ${why}`);
    return verifier.rows.map((rows) => [rows, verifier.costMs(rows)]);
  }

  /** Computes a prompt of `tokens` up to its first token. @returns the duration in ms. */
  async prefill(tokens: number, chunkTokens: number, slot = 0): Promise<number> {
    const ids = promptIds(tokens, this.vocab);
    const startMs = performance.now();
    for (let past = 0; past < tokens; past += chunkTokens) {
      const part = ids.subarray(past, past + chunkTokens);
      const last = past + part.length === tokens;
      const logitRows = last ? [part.length - 1] : [];
      const logits = await this.#prompts.chunk({ slot, past, ids: part, soft: NO_SOFT_TOKENS, logitRows });
      if (last) sample(logits, GREEDY, 0, new OutputHistory());
    }
    this.#filled[slot] = tokens;
    return performance.now() - startMs;
  }

  /**
   * Runs `steps` decode steps of `batch` sequences that begin at `context` tokens.
   * @param pick choose the tokens where the logits are, as a worker on a device does for greedy requests.
   * @returns the duration of each in ms.
   */
  async decode(batch: number, context: number, steps: number, pick = false): Promise<number[]> {
    await this.fill(batch, context);
    const ids = new Int32Array(batch).fill(1);
    const lengths = new Int32Array(batch).fill(context);
    const history = new OutputHistory();
    const times: number[] = [];
    for (let i = 0; i < steps; i++) {
      const startMs = performance.now();
      if (pick) ids.set(await this.#steps.pick(ids, lengths));
      else {
        const logits = await this.#steps.step(ids, lengths);
        for (let row = 0; row < batch; row++) {
          const rowLogits = logits.subarray(row * this.vocab, (row + 1) * this.vocab);
          ids[row] = sample(rowLogits, GREEDY, i, history).id;
        }
      }
      for (let row = 0; row < batch; row++) lengths[row]!++;
      times.push(performance.now() - startMs);
    }
    return times;
  }

  dispose(): void {
    this.#steps.dispose();
    if (this.#prompts !== this.#steps) this.#prompts.dispose();
  }

  /**
   * Puts real keys and values into the slots, because attention over zeros could be faster. Steps overwrite what
   * follows.
   */
  async fill(slots: number, length: number): Promise<void> {
    for (let slot = 0; slot < slots; slot++) {
      if (this.#filled[slot]! < length) await this.prefill(length, 512, slot);
      this.#filled[slot] = length;
    }
  }
}

/** Token ids that are the same in every run, and are spread over the vocabulary. */
export const promptIds = (tokens: number, vocab: number): Int32Array =>
  Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % Math.min(vocab, 150_000));
