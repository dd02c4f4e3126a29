/**
 * One prompt of a request made ready for workers: chunks of the repository for the text around the cursor, the prompt
 * as token ids, and its choices, which have nothing in them yet.
 */
import { inTurns } from '../../lib/async/turns.ts';
import { REACH } from '../../lib/rag/search/query.ts';
import type { Retrieved } from '../../lib/rag/search/retrieval.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import { PromptBuilder } from '../../lib/text/prompt.ts';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import { type ContextFinder, type FoundContext, reportWithin } from '../context/context.ts';
import { hashOf, type Sessions, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest, PromptInput } from '../request.ts';
import type { WorkerPool } from '../workers/worker-pool.ts';
import { type Choice, type ChoiceDelta, choicesOf } from './choice.ts';
import type { RequestRecord } from './request-record.ts';
import type { CompletionConfig } from './settings.ts';

/** Identity, limits and outlet of one request, which all of its prompts share. */
export interface RequestScope {
  readonly id: string;
  readonly tenant: string;
  readonly record: RequestRecord;
  /** Time at which its budget is spent, in ms of the monotonic clock; the signal is aborted then. */
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
  /** Takes the output of new tokens; the journey waits for it before it goes on with that choice. */
  readonly emit: (delta: ChoiceDelta) => void | Promise<void>;
}

/** One prompt of a request, on its way. */
export interface PromptTask {
  readonly request: CompletionRequest;
  readonly scope: RequestScope;
  /** Number of the prompt within the request. */
  readonly promptIndex: number;
  readonly prompt: TokenPrompt;
  readonly choices: readonly Choice[];
  /** One per choice. */
  readonly samplings: readonly Sampling[];
  /** Addresses of workers that have failed it. */
  readonly failedWorkers: Set<string>;
}

export interface PreparationParts extends Pick<CompletionConfig, 'promptOrder'> {
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  readonly pool: Pick<WorkerPool, 'capacity'>;
  readonly context: Pick<ContextFinder, 'find'>;
  readonly sessions: Sessions;
}

export class Preparation {
  readonly #parts: PreparationParts;
  readonly #prompts: PromptBuilder;

  constructor(parts: PreparationParts) {
    this.#parts = parts;
    this.#prompts = new PromptBuilder(parts.tokenizer, parts.format, parts.promptOrder);
  }

  /**
   * @throws ServingError for what the client got wrong (context_length_exceeded, repo_not_found); the signal's reason.
   */
  async prepare(
    request: CompletionRequest,
    promptIndex: number,
    samplings: readonly Sampling[],
    scope: RequestScope,
  ): Promise<PromptTask> {
    const { tokenizer, format, pool } = this.#parts;
    const { timeline } = scope.record;
    const input = request.prompts[promptIndex]!;
    const found = await this.#retrieve(request, input, scope);
    timeline.mark('retrieved');
    const parts = {
      prompt: input,
      suffix: request.suffix,
      completionPrefix: request.completionPrefix,
      context: found?.context,
      capacity: pool.capacity,
      maxTokens: request.maxTokens,
      truncateTo: request.truncatePromptTokens,
      addSpecialTokens: request.addSpecialTokens,
    };
    const prompt = await inTurns(this.#prompts.build(parts), scope.signal);
    if (found) scope.record.contextFound(reportWithin(found.report, prompt.contextChunks, prompt.contextCut));
    timeline.mark('tokenized');
    const choices = choicesOf(request, promptIndex, prompt, tokenizer, format);
    return { request, scope, promptIndex, prompt, choices, samplings, failedWorkers: new Set() };
  }

  async #retrieve(
    request: CompletionRequest,
    input: PromptInput,
    scope: RequestScope,
  ): Promise<FoundContext | undefined> {
    const { rag } = request;
    if (rag === undefined) return undefined;
    const { tokenizer, context, sessions } = this.#parts;
    const before = typeof input === 'string' ? input : tokenizer.decode(input.slice(-REACH));
    const session = sessionOf(request, scope.tenant);
    const key = hashOf([rag.repo, rag.mode, rag.path, rag.topK, rag.retriever]);
    const settle = session === undefined ? undefined : (found: Retrieved) => sessions.settle(session, key, found);
    const query = { rag, before, after: request.suffix ?? '', deadlineMs: scope.deadlineMs, settle };
    return context.find(query, scope.signal);
  }
}
