/**
 * Repository context for one prompt. A completion without context is worth more than none: where context cannot be had,
 * the answer says why and the completion goes on. Only what the client got wrong is refused.
 */
import { startLateTimer } from '../../lib/async/late-timer.ts';
import type { ConfigOf } from '../../lib/process/config.ts';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { needsEmbeddings, type RetrieverName } from '../../lib/rag/retriever-name.ts';
import type { Retrieval, Retrieved } from '../../lib/rag/search/retrieval.ts';
import type { SEARCH_SETTINGS } from '../../lib/rag/settings.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import type { PromptParts } from '../../lib/text/prompt.ts';
import type { RagMode, RagRequest } from '../request.ts';

/**
 * Reason why a completion went on without context; with `no_room`, `rows_damaged` and `rows_too_large` it may also be
 * with less of it than was found.
 */
export type Degradation =
  | 'repo_not_found'
  | 'no_store'
  | 'no_projector'
  | 'store_unavailable'
  | 'over_budget'
  | 'stale_index'
  | 'index_too_large'
  | 'rows_damaged'
  | 'rows_too_large'
  | 'retrieval_failed'
  | 'no_room';

/** The context that stood in the prompt. */
export interface ContextReport {
  /** `text` also where the request says `compressed` and the model has no projector (--without-projector). */
  readonly mode: RagMode;
  readonly chunks: readonly {
    readonly path: string;
    readonly startLine: number;
    readonly endLine: number;
    readonly score: number;
  }[];
  readonly indexVersion: string | null;
  readonly degraded?: Degradation;
}

export interface FoundContext {
  readonly report: ContextReport;
  readonly context: PromptParts['context'];
}

type SearchConfig = ConfigOf<typeof SEARCH_SETTINGS>;
type SearchBudgets = Pick<SearchConfig, 'retrievalBudgetMs' | 'denseBudgetMs'>;

export interface ContextSources extends SearchBudgets, Pick<SearchConfig, 'withoutProjector'> {
  /** undefined where the gateway has no store. */
  readonly retrieval: Retrieval | undefined;
  /** Fingerprint of the bundle's encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token. */
  readonly hidden: number;
  readonly log: Logger;
}

/** The question of one prompt. */
export interface ContextQuery {
  readonly rag: RagRequest;
  /** Text before the cursor. */
  readonly before: string;
  /** Text after it. */
  readonly after: string;
  /** Time at which the request's budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs?: number | undefined;
  /** Decides what of the found chunks stands in the prompt; all of them, in their order, if not given. */
  readonly settle?: ((found: Retrieved) => Retrieved) | undefined;
}

export class ContextFinder {
  readonly #sources: ContextSources;

  constructor(sources: ContextSources) {
    this.#sources = sources;
  }

  /** @throws ServingError repo_not_found, invalid_request; the signal's reason. */
  async find(query: ContextQuery, signal: AbortSignal): Promise<FoundContext> {
    const { before, after, settle } = query;
    const { retrieval, contextFingerprint, withoutProjector, log } = this.#sources;
    let { rag } = query;
    if (rag.mode === 'off') return without(rag.mode);
    const { repo } = rag;
    if (repo === undefined) return without(rag.mode, rag.isUnknown ? 'repo_not_found' : undefined);
    if (rag.mode === 'compressed' && contextFingerprint === undefined) {
      if (withoutProjector === 'off') return without(rag.mode, 'no_projector');
      rag = { ...rag, mode: 'text' };
    }
    if (retrieval === undefined) return without(rag.mode, 'no_store');
    const budget = new Budget(this.#sources, query.deadlineMs);
    try {
      const { path, topK, retriever } = rag;
      if (retriever !== undefined) budget.suit(retriever);
      const live = AbortSignal.any([signal, budget.signal]);
      const part = rag.mode === 'text' ? 'text' : 'vectors';
      const search = { repo, path, before, after, topK, retriever, part } as const;
      const found = await retrieval.retrieve(search, live, (used) => budget.suit(used));
      // Chunks of an earlier prompt may take the place of those that were found. What is missing, this search tells.
      return asContext(rag, { ...(settle?.(found) ?? found), leftOut: found.leftOut }, this.#sources);
    } catch (error) {
      signal.throwIfAborted();
      if (budget.signal.aborted) return without(rag.mode, 'over_budget');
      const failure = ServingError.from(error);
      if (isRefused(failure, rag)) {
        throw new ServingError(failure.code, failure.message, {
          param: `rag.${failure.param ?? 'repo'}`,
          cause: error,
        });
      }
      log.warn({ err: failure, repo: rag.repo }, 'retrieval failed: going on without context');
      return without(rag.mode, DEGRADATION_OF[failure.code] ?? 'retrieval_failed');
    } finally {
      budget.stop();
    }
  }
}

/** What clients are told of failures, apart from `retrieval_failed`. */
const DEGRADATION_OF: Partial<Record<ErrorCode, Degradation>> = {
  repo_not_found: 'repo_not_found',
  store_unavailable: 'store_unavailable',
  index_too_large: 'index_too_large',
  // Too many indexes wait for being loaded: there is no hope that this one is there in time.
  saturated: 'over_budget',
};

/** Whether the client must mend it: it named a repository that is not there, or a retriever that cannot search it. */
function isRefused({ code, param }: ServingError, { retriever, isOptional }: RagRequest): boolean {
  if (isOptional && (code === 'repo_not_found' || param === 'repo')) return false;
  if (code === 'invalid_request') return param === 'repo' || (param === 'retriever' && retriever !== undefined);
  return code === 'repo_not_found';
}

/**
 * The report of a context of which the first `chunks` chunks stand in the prompt.
 * @param cut whether the others are missing for lack of room.
 */
export function reportWithin(report: ContextReport, chunks: number, cut: boolean): ContextReport {
  const degraded = report.degraded ?? (cut ? 'no_room' : undefined);
  return { ...report, chunks: report.chunks.slice(0, chunks), ...(degraded && { degraded }) };
}

/** Share of the request's remaining budget that retrieval may take. */
const BUDGET_SHARE = 0.25;

/** Aborts its signal when a retrieval has taken as long as its retriever may. */
class Budget {
  readonly #controller = new AbortController();
  readonly #sources: SearchBudgets;
  readonly #startMs = performance.now();
  readonly #longestMs: number;
  #stopTimer: () => void = () => {};

  constructor(sources: SearchBudgets, deadlineMs = Infinity) {
    this.#sources = sources;
    this.#longestMs = Math.ceil(Math.max(deadlineMs - this.#startMs, 0) * BUDGET_SHARE);
    this.#endAfter(sources.retrievalBudgetMs);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Allows the time that a retriever needs. */
  suit(retriever: RetrieverName): void {
    const { retrievalBudgetMs, denseBudgetMs } = this.#sources;
    if (needsEmbeddings(retriever)) this.#endAfter(Math.max(retrievalBudgetMs, denseBudgetMs));
  }

  stop(): void {
    this.#stopTimer();
  }

  #endAfter(retrieverMs: number): void {
    const budgetMs = Math.min(retrieverMs, this.#longestMs);
    this.#stopTimer();
    const over = () => this.#controller.abort(new ServingError('deadline_exceeded', `retrieval took ${budgetMs} ms`));
    this.#stopTimer = startLateTimer(budgetMs - (performance.now() - this.#startMs), over);
  }
}

function asContext(rag: RagRequest, found: Retrieved, sources: ContextSources): FoundContext {
  const degraded = found.leftOut && (`rows_${found.leftOut}` as const);
  const report: ContextReport = {
    mode: rag.mode,
    chunks: found.chunks.map(({ path, startLine, endLine, score }) => ({ path, startLine, endLine, score })),
    indexVersion: found.indexVersion,
    ...(degraded && { degraded }),
  };
  if (rag.mode === 'text') {
    const { path = '', maxTextTokens: maxTokens } = rag;
    const repo = nameOf(rag.repo ?? '');
    return { report, context: { kind: 'text', repo, path, chunks: found.chunks, maxTokens } };
  }
  const vectors = found.chunks.map((chunk) => chunk.vector);
  // Vectors that another encoder or projector made are noise to this model, and workers refuse what is not a number.
  const fits = vectors.every((vector) => vector.length === sources.hidden && vector.every(Number.isFinite));
  if (found.fingerprint !== sources.contextFingerprint || !fits) return without(rag.mode, 'stale_index', found);
  return { report, context: { kind: 'soft', vectors } };
}

function without(mode: RagMode, degraded?: Degradation, found?: Retrieved): FoundContext {
  return { report: { mode, chunks: [], indexVersion: found?.indexVersion ?? null, degraded }, context: undefined };
}
