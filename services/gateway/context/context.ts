/**
 * Repository context for one prompt. A completion without context is worth more than none: where context cannot be had,
 * the answer says why and the completion goes on. Only what the client got wrong is refused.
 */
import { startLateTimer } from '../../lib/async/late-timer.ts';
import { inTurns } from '../../lib/async/turns.ts';
import type { ConfigOf } from '../../lib/process/config.ts';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { TraceHeaders } from '../../lib/process/span.ts';
import { needsEmbeddings, type RetrieverName } from '../../lib/rag/retriever-name.ts';
import { liveHits } from '../../lib/rag/search/live.ts';
import { cursorQuery } from '../../lib/rag/search/query.ts';
import {
  onlyLive,
  type Retrieval,
  type Retrieved,
  type RetrievedChunk,
  type RetrievedFile,
} from '../../lib/rag/search/retrieval.ts';
import type { SEARCH_SETTINGS } from '../../lib/rag/settings.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import type { RowPart } from '../../lib/rag/store/store.ts';
import type { BuiltPrompt, PromptParts } from '../../lib/text/prompt.ts';
import type { OverlayText, RagMode, RagRequest } from '../request.ts';
import { NO_OVERLAY, type Overlay, type Overlays } from './overlay.ts';
import { standOut } from './stand-out.ts';

/**
 * Reason why a completion went on without context; with `no_room`, `rows_damaged` and `rows_too_large` it may also be
 * with less of it than was found, and with `no_file_vectors` only soft tokens of files are missing.
 */
export type Degradation =
  | 'repo_not_found'
  | 'no_store'
  | 'no_projector'
  | 'no_file_vectors'
  | 'store_unavailable'
  | 'over_budget'
  | 'stale_index'
  | 'index_too_large'
  | 'rows_damaged'
  | 'rows_too_large'
  | 'retrieval_failed'
  | 'no_room';

/** How a chunk stands in a prompt. */
type Form = 'soft' | 'text';

interface ReportedChunk {
  readonly path: string;
  readonly startLine: number;
  readonly endLine: number;
  readonly score: number;
  /** It is a chunk of the request's overlay, and how it stands. */
  readonly overlay?: Form;
  /** How it stands in a mixed prompt. */
  readonly form?: Form;
}

/** The context that stood in the prompt. */
export interface ContextReport {
  /** `text` also where the request asks for soft tokens and the model has no projector (--without-projector). */
  readonly mode: RagMode;
  /** In the order in which they stand in the prompt: those of one form best first, soft tokens before text. */
  readonly chunks: readonly ReportedChunk[];
  /** Files whose own soft tokens stand before the chunks; undefined where none were asked for. */
  readonly files?: readonly Pick<RetrievedFile, 'path'>[];
  readonly indexVersion: string | null;
  readonly degraded?: Degradation;
  /** The request asked for one mode and was given another one because of the load: see admission/quality-ladder.ts. */
  readonly ladder?: { readonly asked: RagMode; readonly given: RagMode } | undefined;
}

export interface FoundContext {
  readonly report: ContextReport;
  readonly context: PromptParts['context'];
  /** Texts of the chunks that stand as soft tokens, the best first, where drafts are made of them. */
  readonly softTexts?: readonly string[];
}

type SearchConfig = ConfigOf<typeof SEARCH_SETTINGS>;
type SearchBudgets = Pick<SearchConfig, 'retrievalBudgetMs' | 'denseBudgetMs'>;

export interface ContextSources extends SearchBudgets, Pick<SearchConfig, 'withoutProjector' | 'queryLines'> {
  /** Whether the texts of chunks are read where they stand as soft tokens; off when not given. */
  readonly speculation?: 'auto' | 'off';
  /** undefined where the gateway has no store. */
  readonly retrieval: Retrieval | undefined;
  /** Fingerprint of the bundle's encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token. */
  readonly hidden: number;
  /** Soft tokens of one chunk; 1 if not given. */
  readonly softPerChunk?: number;
  readonly overlays: Pick<Overlays, 'of' | 'vectorsOf' | 'encodeAhead'>;
  readonly log: Logger;
}

/** The question of one prompt. */
export interface ContextQuery {
  readonly rag: RagRequest;
  /** The trace that calls to the indexer belong to. */
  readonly trace?: TraceHeaders | undefined;
  readonly tenant: string;
  /** Texts that the editor holds, newer than what is indexed. */
  readonly overlay?: readonly OverlayText[] | undefined;
  /** Text before the cursor. */
  readonly before: string;
  /** Text after it. */
  readonly after: string;
  /** Time at which the request's budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs?: number | undefined;
  /**
   * Decides what of the found chunks stands in the prompt; all of them, in their order, if not given.
   * @param isCurrent whether a chunk of an earlier prompt is still what the client has: see {@link Overlay}.
   */
  readonly settle?: ((found: Found, isCurrent: IsCurrent) => Found) | undefined;
}

/** What was found; without an index, only the version and the fingerprint are missing. */
export type Found = Pick<Retrieved, 'chunks' | 'files' | 'leftOut'> & {
  readonly indexVersion: string | null;
  /** undefined where there is no index: chunks of an overlay have vectors of the served encoder. */
  readonly fingerprint: string | undefined;
};

export type IsCurrent = (chunk: Pick<RetrievedChunk, 'id' | 'path' | 'isLive'>) => boolean;

export class ContextFinder {
  readonly #sources: ContextSources;

  constructor(sources: ContextSources) {
    this.#sources = sources;
  }

  /** @throws ServingError repo_not_found, invalid_request; the signal's reason. */
  async find(query: ContextQuery, signal: AbortSignal): Promise<FoundContext> {
    const { settle, tenant } = query;
    const { contextFingerprint, withoutProjector, overlays } = this.#sources;
    let { rag } = query;
    if (rag.mode === 'off') return without(rag.mode);
    if (rag.mode !== 'text' && contextFingerprint === undefined) {
      if (withoutProjector === 'off') return without(rag.mode, 'no_projector');
      rag = { ...rag, mode: 'text' };
    }
    const texts = (query.overlay ?? []).filter(({ path }) => path !== rag.path);
    const overlay = texts.length === 0 ? NO_OVERLAY : await overlays.of(tenant, texts, signal);
    // Editors send their files ahead of the text to be completed, in a warm-up: no chunk is chosen for that.
    const isAhead = query.before.trim() === '' && query.after.trim() === '';
    if (isAhead && rag.mode !== 'text') overlays.encodeAhead(tenant, overlay, query.trace);
    const { found, degraded } = await this.#search({ ...query, rag }, overlay, signal);
    const encoded = rag.mode === 'text' ? found : await this.#encode(query, overlay, found, signal);
    const ids = new Set(overlay.chunks.map(({ id }) => id));
    const replaced = new Set(overlay.replaced);
    const isCurrent: IsCurrent = ({ id, path, isLive }) => (isLive ? ids.has(id) : !replaced.has(path));
    // Chunks of an earlier prompt may take the place of those that were found. What is missing, this search tells.
    const settled = settle?.(encoded, isCurrent) ?? encoded;
    const context = asContext(rag, { ...settled, leftOut: found.leftOut }, this.#sources);
    const why = degraded ?? context.report.degraded ?? (overlay.cut ? 'no_room' : undefined);
    const { askedMode: asked, mode: given } = rag;
    const ladder = asked && { asked, given };
    return { ...context, report: { ...context.report, ...(why && { degraded: why }), ...(ladder && { ladder }) } };
  }

  /** Vectors for the chunks of the overlay, as far as they come in time. */
  async #encode(query: ContextQuery, overlay: Overlay, found: Found, signal: AbortSignal): Promise<Found> {
    const { tenant, trace } = query;
    const live = found.chunks.filter(({ isLive }) => isLive);
    if (live.length === 0) return found;
    const vectors = await this.#sources.overlays.vectorsOf(tenant, overlay, live, signal, trace);
    const byId = new Map(live.map(({ id }, i) => [id, vectors[i]]));
    return {
      ...found,
      chunks: found.chunks.map((chunk) => {
        const vector = chunk.isLive ? byId.get(chunk.id) : undefined;
        return vector ? { ...chunk, vector } : chunk;
      }),
    };
  }

  /** The best chunks of index and overlay. Where the index cannot be searched, those of the overlay remain. */
  async #search(query: ContextQuery, { chunks, replaced }: Overlay, signal: AbortSignal): Promise<Searched> {
    const { rag, before, after } = query;
    const { retrieval, queryLines, speculation, log } = this.#sources;
    const { repo, path, topK, retriever, fileTokens } = rag;
    const around = chunks.length === 0 ? undefined : cursorQuery(before, after, queryLines);
    const live = around === undefined ? [] : await inTurns(liveHits(chunks, around, topK), signal);
    const alone = (degraded?: Degradation): Searched => ({
      found: { chunks: onlyLive(live), indexVersion: null, fingerprint: undefined },
      degraded,
    });
    if (repo === undefined) return alone(rag.isUnknown ? 'repo_not_found' : undefined);
    if (retrieval === undefined) return alone('no_store');
    const budget = new Budget(this.#sources, query.deadlineMs);
    try {
      if (retriever !== undefined) budget.suit(retriever);
      const until = AbortSignal.any([signal, budget.signal]);
      const part = rag.mode === 'compressed' && speculation === 'auto' ? undefined : PART_OF[rag.mode];
      const asked = { repo, path, before, after, topK, retriever, part, ...(around && { replaced, live }) } as const;
      const search = part === 'text' || fileTokens === undefined ? asked : { ...asked, files: fileTokens };
      return { found: await retrieval.retrieve(search, until, (used) => budget.suit(used)) };
    } catch (error) {
      signal.throwIfAborted();
      if (budget.signal.aborted) return alone('over_budget');
      const failure = ServingError.from(error);
      if (isRefused(failure, rag)) {
        throw new ServingError(failure.code, failure.message, {
          param: `rag.${failure.param ?? 'repo'}`,
          cause: error,
        });
      }
      log.warn({ err: failure, repo: rag.repo }, 'retrieval failed: going on without context');
      return alone(DEGRADATION_OF[failure.code] ?? 'retrieval_failed');
    } finally {
      budget.stop();
    }
  }
}

/** What a prompt needs of the rows of chunks: both where it is not said. */
const PART_OF: Partial<Record<RagMode, RowPart>> = { compressed: 'vectors', text: 'text' };

interface Searched {
  readonly found: Found;
  /** Why the index was not searched. */
  readonly degraded?: Degradation | undefined;
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

/** The report of a context as far as it stands in a prompt. */
export function reportWithin(
  { report, context }: FoundContext,
  built: Pick<BuiltPrompt, 'contextChunks' | 'contextTexts' | 'contextFiles' | 'contextCut'>,
): ContextReport {
  const degraded = report.degraded ?? (built.contextCut ? 'no_room' : undefined);
  const vectors = context?.kind === 'soft' ? context.textVectors : undefined;
  const softChunks = report.chunks.length - (vectors?.length ?? 0);
  const texts = report.chunks.slice(softChunks);
  const instead = texts.filter((_, i) => i >= built.contextTexts && vectors?.[i] !== undefined);
  const soft = [...instead.map(asSoft), ...report.chunks.slice(0, softChunks)];
  const chunks = vectors
    ? [...soft.slice(0, built.contextChunks - built.contextTexts), ...texts.slice(0, built.contextTexts)]
    : report.chunks.slice(0, built.contextChunks);
  const files = report.files && { files: report.files.slice(0, built.contextFiles) };
  return { ...report, chunks, ...files, ...(degraded && { degraded }) };
}

/** A chunk of text that stands as a soft token instead. */
const asSoft = (chunk: ReportedChunk): ReportedChunk => ({
  ...chunk,
  ...(chunk.overlay && { overlay: 'soft' }),
  ...(chunk.form && { form: 'soft' }),
});

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

function asContext(rag: RagRequest, found: Found, sources: ContextSources): FoundContext {
  const rows = found.leftOut && (`rows_${found.leftOut}` as const);
  const { path = '', maxTextTokens: maxTokens } = rag;
  const asText = (chunks: Found['chunks']) =>
    ({ kind: 'text', repo: nameOf(rag.repo ?? ''), path, chunks, maxTokens }) as const;
  if (rag.mode === 'text') {
    return { report: reportOf(rag, found, [], found.chunks, rows), context: asText(found.chunks) };
  }
  const indexed = found.chunks.filter(({ isLive }) => !isLive);
  // Vectors that another encoder or projector made are noise to this model, and workers refuse what is not a number.
  const { hidden, softPerChunk: perChunk = 1 } = sources;
  const isSound = ({ vector }: Pick<RetrievedChunk, 'vector'>, count = perChunk) =>
    vector.length === hidden * count && vector.every(Number.isFinite);
  const isStale =
    found.fingerprint !== undefined &&
    (found.fingerprint !== sources.contextFingerprint || !indexed.every((chunk) => isSound(chunk)));
  const best = found.chunks.slice(0, rag.mode === 'mixed' ? (rag.textChunks ?? standOut(scoresOf(found))) : 0);
  const usable = found.chunks.slice(best.length).filter(({ isLive }) => isLive || !isStale);
  const soft = usable.filter((chunk) => isSound(chunk));
  const text = [...best, ...usable.filter((chunk) => !isSound(chunk))];
  const files = isStale ? [] : (found.files ?? []).filter((file) => isSound(file, 1));
  const lacksFiles = (rag.fileTokens ?? 0) > 0 && found.fingerprint !== undefined && found.files === undefined;
  const degraded = isStale ? 'stale_index' : (rows ?? (lacksFiles ? 'no_file_vectors' : undefined));
  const all = reportOf(rag, found, soft, text, degraded);
  const report = rag.fileTokens === undefined ? all : { ...all, files: files.map(({ path }) => ({ path })) };
  if (soft.length + text.length === 0 && isStale) return { report, context: undefined };
  const mayBeSoft = (chunk: RetrievedChunk) => isSound(chunk) && (chunk.isLive || !isStale);
  const textVectors = text.map((chunk) => (mayBeSoft(chunk) ? chunk.vector : undefined));
  return {
    report,
    ...(sources.speculation === 'auto' && { softTexts: soft.map((chunk) => chunk.text) }),
    context: {
      kind: 'soft',
      vectors: soft.map(({ vector }) => vector),
      ...(perChunk > 1 && { perChunk }),
      ...(files.length > 0 && { files: files.map(({ vector }) => vector) }),
      ...(text.length > 0 && { text: asText(text), textVectors }),
    },
  };
}

const scoresOf = ({ chunks }: Found) => chunks.map(({ score }) => score);

/** @param soft chunks that stand as soft tokens. @param text those that stand behind them as text. */
function reportOf(
  { mode }: RagRequest,
  found: Found,
  soft: Found['chunks'],
  text: Found['chunks'],
  degraded?: Degradation,
): ContextReport {
  const reported = (form: Form) => (chunk: RetrievedChunk) => ({
    path: chunk.path,
    startLine: chunk.startLine,
    endLine: chunk.endLine,
    score: chunk.score,
    ...(chunk.isLive && { overlay: form }),
    ...(mode === 'mixed' && { form }),
  });
  const chunks = [...soft.map(reported('soft')), ...text.map(reported('text'))];
  return { mode, chunks, indexVersion: found.indexVersion, ...(degraded && { degraded }) };
}

const without = (mode: RagMode, degraded?: Degradation): FoundContext => ({
  report: { mode, chunks: [], indexVersion: null, degraded },
  context: undefined,
});
