/**
 * One prompt of a request made ready for workers: chunks of the repository for the text around the cursor, the prompt
 * as token ids, and its choices, which have nothing in them yet.
 */
import { inTurns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { grammarNamed, grammarOf, guessGrammar } from '../../lib/rag/encode/grammars.ts';
import { Statements } from '../../lib/rag/encode/statements.ts';
import { REACH } from '../../lib/rag/search/query.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { Drafts } from '../../lib/rpc/gen/llavacode/v1/Drafts.ts';
import { clientFrame } from '../../lib/text/client-frame.ts';
import { lfSteps, usesCrlf } from '../../lib/text/line-ends.ts';
import { PromptBuilder, type PromptParts } from '../../lib/text/prompt.ts';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import { type ContextFinder, type ContextQuery, type FoundContext, reportWithin } from '../context/context.ts';
import { hashOf, type Sessions, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest, PromptInput } from '../request.ts';
import type { WorkerPool } from '../workers/worker-pool.ts';
import { type Choice, type ChoiceDelta, choicesOf, textBefore } from './choice.ts';
import type { DraftTexts } from './draft-texts.ts';
import type { RequestRecord } from './request-record.ts';
import type { CompletionConfig } from './settings.ts';
import type { TokenStream } from './token-stream.ts';

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
  /** The first token of the prompt whose logprob may be wanted: that of a given beginning; 0 without one. */
  readonly reportedFrom: number;
  readonly choices: readonly Choice[];
  /** Takes the tokens of the one choice in its place, for whoever reads them. */
  readonly stream?: TokenStream;
  /** One per choice. */
  readonly samplings: readonly Sampling[];
  /** What the output may repeat; undefined without speculation. */
  readonly drafts: Drafts | undefined;
  /** Addresses of workers that have failed it. */
  readonly failedWorkers: Set<string>;
}

export interface PreparationParts extends Pick<CompletionConfig, 'promptOrder' | 'suffixUnsupported'> {
  readonly draftTexts: DraftTexts;
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  readonly pool: Pick<WorkerPool, 'capacity'>;
  readonly context: Pick<ContextFinder, 'find'>;
  readonly sessions: Sessions;
}

/** The text on either side of the cursor, and what a client's own frame has before it. */
type Sides = Pick<PromptParts, 'prompt' | 'suffix' | 'head'>;

/** The text around the cursor as the model is to read it. A prompt that is given back (`echo`) stays as it is. */
function* withModelLineEnds({ prompt, suffix, head }: Sides, echo: boolean): Generator<void, Sides> {
  if (echo || typeof prompt !== 'string' || !usesCrlf(prompt, suffix ?? '')) return { prompt, suffix, head };
  return {
    prompt: yield* lfSteps(prompt),
    suffix: suffix === undefined ? undefined : yield* lfSteps(suffix),
    head: head === undefined ? undefined : yield* lfSteps(head),
  };
}

/** A request's texts with one prompt taken apart. */
const around = ({ prompts }: CompletionRequest, promptIndex: number, { prompt, suffix }: Sides) => ({
  prompts: prompts.with(promptIndex, prompt),
  suffix,
});

export class Preparation {
  readonly #parts: PreparationParts;
  readonly #prompts: PromptBuilder;

  constructor(parts: PreparationParts) {
    this.#parts = parts;
    this.#prompts = new PromptBuilder(parts.tokenizer, parts.format, parts.promptOrder);
  }

  /**
   * @throws ServingError for what the client got wrong (context_length_exceeded, repo_not_found, suffix_unsupported);
   *   the signal's reason.
   */
  async prepare(
    request: CompletionRequest,
    promptIndex: number,
    samplings: readonly Sampling[],
    scope: RequestScope,
  ): Promise<PromptTask> {
    const { tokenizer, format, pool } = this.#parts;
    const { timeline } = scope.record;
    const sides = await this.#sidesOf(request, request.prompts[promptIndex]!, scope);
    const found = await this.#retrieve(request, sides, scope);
    timeline.mark('retrieved');
    const parts = {
      ...(await inTurns(withModelLineEnds(sides, request.echo), scope.signal)),
      completionPrefix: request.completionPrefix,
      context: found?.context,
      capacity: pool.capacity,
      maxTokens: request.maxTokens,
      truncateTo: request.truncatePromptTokens,
      addSpecialTokens: request.addSpecialTokens,
    };
    const prompt = await inTurns(this.#prompts.build(parts), scope.signal);
    if (found) scope.record.contextFound(reportWithin(found, prompt));
    scope.record.prepared(prompt.promptCut);
    const asked = { ...request, ...around(request, promptIndex, sides) };
    const statements = await this.#statementsFor(asked, promptIndex);
    const choices = choicesOf(asked, promptIndex, prompt, tokenizer, format, statements);
    const beside = { tenant: scope.tenant, chunks: found?.softTexts ?? [] };
    const drafts = await inTurns(this.#parts.draftTexts.of(asked, prompt.ids, beside), scope.signal);
    const reportedFrom = request.completionPrefix === undefined ? 0 : prompt.ids.length - prompt.begunTokens;
    const task = { request: asked, scope, promptIndex, prompt, reportedFrom };
    return { ...task, choices, samplings, drafts, failedWorkers: new Set() };
  }

  /**
   * The text on either side of the cursor. A prompt in which the client has framed both sides itself is taken apart,
   * unless it is to be given back as it was sent.
   * @throws ServingError suffix_unsupported; the signal's reason.
   */
  async #sidesOf({ suffix, echo }: CompletionRequest, prompt: PromptInput, { record, signal }: RequestScope) {
    const { tokenizer, format, suffixUnsupported } = this.#parts;
    if (suffix !== undefined || echo || typeof prompt !== 'string') {
      if (suffix && format.frame === undefined) {
        if (suffixUnsupported === 'refuse') throw unsupportedSuffix();
        record.suffixLeftOut();
      }
      return { prompt, suffix };
    }
    const framed = await inTurns(clientFrame(tokenizer, format, prompt), signal);
    return framed ? { prompt: framed.left, suffix: framed.right, head: framed.head } : { prompt, suffix };
  }

  /** What knows the statements of the code's language, where that matters and there is a grammar. */
  async #statementsFor(request: CompletionRequest, promptIndex: number): Promise<Statements | undefined> {
    const { stopAt, language } = request;
    if (stopAt !== 'statement' && stopAt !== 'block') return undefined;
    const path = request.rag?.path ?? request.filePath;
    const named = language === undefined ? grammarOf(path ?? '') : grammarNamed(language);
    const isNamed = language !== undefined || path !== undefined;
    const grammar = isNamed ? named : guessGrammar(textBefore(request, promptIndex, this.#parts.tokenizer));
    return grammar && Statements.load(grammar);
  }

  async #retrieve(
    request: CompletionRequest,
    { prompt: input, suffix = '' }: Pick<PromptParts, 'prompt' | 'suffix'>,
    scope: RequestScope,
  ): Promise<FoundContext | undefined> {
    const { rag } = request;
    if (rag === undefined) return undefined;
    const { tokenizer, context, sessions } = this.#parts;
    const before = typeof input === 'string' ? input : tokenizer.decode(input.slice(-REACH));
    const session = sessionOf(request, scope.tenant);
    const { repo, mode, path, topK, retriever, fileTokens } = rag;
    const key = hashOf([repo, mode, path, topK, retriever, fileTokens]);
    const settle: ContextQuery['settle'] =
      session === undefined ? undefined : (found, isCurrent) => sessions.settle(session, key, found, isCurrent);
    const query = {
      rag,
      trace: scope.record.trace?.retrieves(rag.topK, rag.mode),
      tenant: scope.tenant,
      overlay: request.overlay,
      before,
      after: suffix,
      deadlineMs: scope.deadlineMs,
      settle,
    };
    return context.find(query, scope.signal);
  }
}

const unsupportedSuffix = () =>
  new ServingError(
    'suffix_unsupported',
    'suffix: the served model has no tokens for filling in the middle, so it cannot see the text after the cursor',
    { param: 'suffix' },
  );
