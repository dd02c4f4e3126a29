/**
 * Repository context for one prompt. A completion without it is worth more than none, so whatever keeps it away is
 * reported and the completion goes on; only what the client got wrong is refused.
 */
import { startLateTimer } from '../../lib/async/late-timer.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { needsEmbeddings, type RetrieverName } from '../../lib/rag/retriever-name.ts';
import type { Retrieval, Retrieved } from '../../lib/rag/search/retrieval.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import type { PromptParts } from '../../lib/text/prompt.ts';
import type { RagMode, RagRequest } from '../request.ts';

/** Why a completion went on without context. */
export type Degradation = 'no_store' | 'store_unavailable' | 'over_budget' | 'stale_index' | 'retrieval_failed';

/** `rag` of an answer: what stood in the prompt. */
export interface ContextReport {
  readonly mode: RagMode;
  readonly chunks: readonly {
    readonly path: string;
    readonly start_line: number;
    readonly end_line: number;
    readonly score: number;
  }[];
  readonly index_version: string | null;
  readonly degraded?: Degradation;
}

export interface FoundContext {
  readonly report: ContextReport;
  readonly context: PromptParts['context'];
}

export interface ContextSources {
  /** undefined where the gateway has no store. */
  readonly retrieval: Retrieval | undefined;
  readonly retrievalBudgetMs: number;
  /** Of retrievers that encode the query. */
  readonly denseBudgetMs: number;
  /** Fingerprint of the bundle's encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token. */
  readonly hidden: number;
  /** When the request's budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs?: number | undefined;
  /** What stands in the prompt of what was found; all of it, in its order, if not given. */
  readonly settle?: ((found: Retrieved) => Retrieved) | undefined;
  readonly log: Logger;
}

/**
 * @param before text before the cursor.
 * @param after text after it.
 * @throws ServingError repo_not_found, invalid_request; the signal's reason.
 */
export async function findContext(
  rag: RagRequest,
  before: string,
  after: string,
  sources: ContextSources,
  signal: AbortSignal,
): Promise<FoundContext> {
  if (rag.mode === 'off') return without(rag.mode);
  if (sources.retrieval === undefined) return without(rag.mode, 'no_store');
  const budget = new Budget(sources);
  try {
    const { repo, path, topK, retriever } = rag;
    const query = { repo, path, before, after, topK, retriever };
    if (retriever !== undefined) budget.suit(retriever);
    const live = AbortSignal.any([signal, budget.signal]);
    const found = await sources.retrieval.retrieve(query, live, (used) => budget.suit(used));
    return asContext(rag, sources.settle?.(found) ?? found, sources);
  } catch (error) {
    signal.throwIfAborted();
    if (budget.signal.aborted) return without(rag.mode, 'over_budget');
    const failure = ServingError.from(error);
    if (failure.kind.http < 500)
      throw new ServingError(failure.code, failure.message, { param: `rag.${failure.param ?? 'repo'}`, cause: error });
    sources.log.warn({ err: failure, repo: rag.repo }, 'retrieval failed: going on without context');
    return without(rag.mode, failure.code === 'store_unavailable' ? 'store_unavailable' : 'retrieval_failed');
  } finally {
    budget.stop();
  }
}

/** Context is worth a part of what is left of the request's budget only. */
const SHARE = 0.25;

/** Aborts its signal when a retrieval has taken as long as its retriever may. */
class Budget {
  readonly #controller = new AbortController();
  readonly #sources: ContextSources;
  readonly #startMs = performance.now();
  readonly #mostMs: number;
  #stopTimer: () => void = () => {};

  constructor(sources: ContextSources) {
    this.#sources = sources;
    this.#mostMs = Math.ceil(Math.max((sources.deadlineMs ?? Infinity) - this.#startMs, 0) * SHARE);
    this.#end(sources.retrievalBudgetMs);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  suit(retriever: RetrieverName): void {
    const { retrievalBudgetMs, denseBudgetMs } = this.#sources;
    if (needsEmbeddings(retriever)) this.#end(Math.max(retrievalBudgetMs, denseBudgetMs));
  }

  stop(): void {
    this.#stopTimer();
  }

  #end(ofRetrieverMs: number): void {
    const budgetMs = Math.min(ofRetrieverMs, this.#mostMs);
    this.#stopTimer();
    const over = () => this.#controller.abort(new ServingError('deadline_exceeded', `retrieval took ${budgetMs} ms`));
    this.#stopTimer = startLateTimer(budgetMs - (performance.now() - this.#startMs), over);
  }
}

function asContext(rag: RagRequest, found: Retrieved, sources: ContextSources): FoundContext {
  const report: ContextReport = {
    mode: rag.mode,
    chunks: found.chunks.map(({ path, startLine, endLine, score }) => ({
      path,
      start_line: startLine,
      end_line: endLine,
      score,
    })),
    index_version: found.indexVersion,
  };
  if (rag.mode === 'text') {
    const { path = '', maxTextTokens: maxTokens } = rag;
    const repo = nameOf(rag.repo);
    return { report, context: { kind: 'text', repo, path, chunks: found.chunks, maxTokens } };
  }
  const vectors = found.chunks.map((chunk) => chunk.vector);
  // Vectors of another encoder or projector are noise to this model.
  const fits = vectors.every((vector) => vector.length === sources.hidden);
  if (found.fingerprint !== sources.contextFingerprint || !fits) return without(rag.mode, 'stale_index', found);
  return { report, context: { kind: 'soft', vectors } };
}

function without(mode: RagMode, degraded?: Degradation, found?: Retrieved): FoundContext {
  return { report: { mode, chunks: [], index_version: found?.indexVersion ?? null, degraded }, context: undefined };
}
