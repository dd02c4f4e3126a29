/**
 * How many workers the load of this gateway keeps 90 % busy: the sum with which `llavacode plan` begins
 * (bench/plan/plan.ts), on what came within the last minute instead of a planned rate. What waits at the moment counts
 * as work to be done within half a minute, so that a queue asks for workers before it is an hour long.
 *
 * Prompts cost what the file of `llavacode plan` says, or what prefill workers measured of themselves. Decode workers
 * are counted by the steps that the output takes, or, without the file, by the slots that sequences hold and wait for.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { type CostModel, fitCosts } from '../../lib/numeric/cost-model.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { reasonOf } from '../../lib/process/os-errors.ts';

/** Load is summed over this time, in ms. */
const WINDOW_MS = 60_000;
/** Parts of the window: the oldest is forgotten when a new one begins. */
const PARTS = 12;
/** What waits is to be gone after this time, in ms. */
const DRAIN_MS = 30_000;
/** A pool that is busier than this makes requests wait; as in `llavacode plan`. */
const MAX_UTILISATION = 0.9;

/** What of the pool's workers counts here. */
export interface WorkerFigures {
  /** Prompt tokens that one prefill worker computes per second, as they measured it; 0 where none has. */
  readonly prefillRate: number;
  /** Slots of one decode worker; 0 where there is none. */
  readonly slots: number;
  /** Sequences that hold slots or wait for them. */
  readonly sequences: number;
  /** Prompt tokens that wait here and in workers. */
  readonly waitingTokens: number;
}

interface Load {
  readonly beganMs: number;
  prompts: number;
  promptTokens: number;
  outputTokens: number;
}

export class DesiredWorkers {
  readonly #costs: CostModel | undefined;
  #parts: Load[] = [];

  constructor(costs: CostModel | undefined) {
    this.#costs = costs;
  }

  /**
   * A request has ended, in whichever way.
   * @param promptTokens computed for it, those that were cached left out.
   * @param nowMs of the monotonic clock, here and below.
   */
  served(prompts: number, promptTokens: number, outputTokens: number, nowMs = performance.now()): void {
    const part = this.#partAt(nowMs);
    part.prompts += prompts;
    part.promptTokens += Math.max(0, promptTokens);
    part.outputTokens += outputTokens;
  }

  /** A request was refused for want of workers: it counts as one like the others of the window. */
  turnedAway(nowMs = performance.now()): void {
    const { prompts, promptTokens, outputTokens } = this.#sum(nowMs);
    if (prompts > 0) this.served(1, promptTokens / prompts, outputTokens / prompts, nowMs);
  }

  /** Workers by role; fractions. 0 without load. */
  desired(figures: WorkerFigures, nowMs = performance.now()): { readonly prefill: number; readonly decode: number } {
    const load = this.#sum(nowMs);
    const beganMs = this.#within(nowMs)[0]?.beganMs ?? nowMs;
    const windowMs = Math.max(nowMs - beganMs, WINDOW_MS / PARTS);
    const { waitingTokens } = figures;
    const prefillMs = this.#prefillMs(load.prompts, load.promptTokens, figures);
    const waitingMs = this.#prefillMs(waitingTokens > 0 ? Math.max(load.prompts, 1) : 0, waitingTokens, figures);
    return {
      prefill: (prefillMs / windowMs + waitingMs / DRAIN_MS) / MAX_UTILISATION,
      // The first token of each answer comes from prefill.
      decode: this.#decode(load.outputTokens - load.prompts, windowMs, figures) / MAX_UTILISATION,
    };
  }

  /** Sets the gauge. */
  publish(figures: WorkerFigures): void {
    for (const [role, workers] of Object.entries(this.desired(figures))) metrics.desiredWorkers.set({ role }, workers);
  }

  /** Time in ms in which one worker computes so many prompts of so many tokens together. */
  #prefillMs(prompts: number, tokens: number, { prefillRate }: WorkerFigures): number {
    if (prompts === 0 || tokens === 0) return 0;
    if (this.#costs) return prompts * this.#costs.prefillMs(tokens / prompts);
    return prefillRate > 0 ? (tokens / prefillRate) * 1000 : 0;
  }

  #decode(outputTokens: number, windowMs: number, { slots, sequences }: WorkerFigures): number {
    const { slots: planned = 0, stepMs = () => 0 } = this.#costs ?? {};
    if (planned > 0) return (outputTokens / planned) * (stepMs(planned) / windowMs);
    return slots > 0 ? sequences / slots : 0;
  }

  #partAt(nowMs: number): Load {
    const newest = this.#parts.at(-1);
    if (newest !== undefined && nowMs - newest.beganMs < WINDOW_MS / PARTS) return newest;
    const part: Load = { beganMs: nowMs, prompts: 0, promptTokens: 0, outputTokens: 0 };
    this.#parts = [...this.#within(nowMs), part];
    return part;
  }

  #within = (nowMs: number) => this.#parts.filter(({ beganMs }) => nowMs - beganMs < WINDOW_MS);

  #sum(nowMs: number): Omit<Load, 'beganMs'> {
    const sum = { prompts: 0, promptTokens: 0, outputTokens: 0 };
    for (const part of this.#within(nowMs)) {
      sum.prompts += part.prompts;
      sum.promptTokens += part.promptTokens;
      sum.outputTokens += part.outputTokens;
    }
    return sum;
  }
}

const positive = z.number().positive();
const ratesFile = z.object({
  result: z.object({
    rates: z.object({
      model: z.string(),
      prefill: z.array(z.object({ tokens: positive, ms: positive })).min(1),
      decode: z.array(z.object({ batch: positive, ms: positive })).min(1),
      coresPerWorker: z.tuple([positive, positive]),
      slots: z.int().min(1),
    }),
  }),
});

/**
 * @param file what `llavacode plan --json` has written; '' for none.
 * @throws ServingError config_invalid
 */
export async function loadRates(file: string): Promise<CostModel | undefined> {
  if (file === '') return undefined;
  try {
    return fitCosts(ratesFile.parse(JSON.parse(await readFile(file, 'utf8'))).result.rates);
  } catch (cause) {
    const issue = cause instanceof z.ZodError ? cause.issues[0] : undefined;
    const why = issue ? `${issue.path.join('.')} ${issue.message}` : reasonOf(cause);
    throw new ServingError('config_invalid', `--rates-file ${file}: ${why}`, { cause });
  }
}
