/**
 * The trace of one completion, made of its timeline: a span for the request, below it one for each of its steps, and
 * one for each wait and each call to a worker, however often these are repeated. The steps cover the request without a
 * gap. Names and attributes are those of OpenTelemetry's conventions for generative AI where there are any
 * (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/), `llavacode.…` otherwise; text of clients and
 * models is never among them.
 */
import type { Attributes, Span, TraceHeaders } from '../../lib/process/span.ts';
import { beginTrace } from '../../lib/process/tracing.ts';
import type { Activity, RequestEvent, Timeline } from '../../lib/request/timeline.ts';
import type { ContextReport } from '../context/context.ts';
import type { CompletionRequest, Usage } from '../request.ts';

/** The gateway's own steps before its activities: waits and calls. After the last of these comes the step `answer`. */
const STEPS: readonly (readonly [name: string, from: RequestEvent, to: RequestEvent])[] = [
  ['admit', 'received', 'admitted'],
  ['tokenize', 'retrieved', 'tokenized'],
];

/** What a request does, as OpenTelemetry's conventions name it. */
export type Operation = 'text_completion' | 'chat';

/** How a request has ended. */
export interface TracedEnd {
  readonly status: number;
  readonly error: string | undefined;
  readonly usage: Usage;
  readonly finishReasons: readonly string[];
  readonly context: ContextReport | undefined;
  readonly replays: number;
  readonly tenant: string | undefined;
}

export class RequestTrace {
  readonly #root: Span;
  readonly #timeline: Timeline;
  readonly #beganMs: number;
  readonly #operation: Operation;
  readonly #spans = new WeakMap<Activity, Span>();
  #retrieve: Span | undefined;
  /** When an activity ended last. */
  #lastEndMs: number | undefined;

  /**
   * Begins with the head of a request.
   * @param headers of the request, which may name the trace that it belongs to.
   * @returns undefined where traces are off.
   */
  static begin(
    timeline: Timeline,
    operation: Operation,
    headers: TraceHeaders,
    attributes: Attributes,
  ): RequestTrace | undefined {
    const atMs = performance.now();
    const root = beginTrace(operation, headers, { kind: 'server', atMs, attributes });
    return root && new RequestTrace(root, timeline, operation, atMs);
  }

  private constructor(root: Span, timeline: Timeline, operation: Operation, beganMs: number) {
    this.#root = root;
    this.#operation = operation;
    this.#timeline = timeline;
    this.#beganMs = beganMs;
    timeline.onBegin((activity) => this.#follow(activity));
  }

  get traceId(): string {
    return this.#root.traceId;
  }

  /** The trace's id if it is exported: what a metric may point to. */
  get exemplar(): string | undefined {
    return this.#root.recorded ? this.#root.traceId : undefined;
  }

  /** It is known what is asked for. @param model name of the served model. @param id of the answer. */
  asks(request: CompletionRequest, model: string, id: string): void {
    if (!this.#root.recorded) return;
    this.#root.rename(`${this.#operation} ${model}`);
    this.#root.set({
      'gen_ai.operation.name': this.#operation,
      'gen_ai.provider.name': 'llavacode',
      'gen_ai.request.model': request.model ?? model,
      'gen_ai.response.model': model,
      'gen_ai.response.id': id,
      'gen_ai.request.max_tokens': request.maxTokens,
      'gen_ai.request.temperature': request.sampling.temperature,
      'gen_ai.request.top_p': request.sampling.topP,
      'gen_ai.request.top_k': request.sampling.topK,
      'gen_ai.request.seed': request.seed,
      'gen_ai.request.choice.count': request.n,
      'llavacode.prompts': request.prompts.length,
    });
  }

  /** The search for chunks begins. @returns the headers of calls that belong to it. */
  retrieves(topK: number, mode: string): TraceHeaders {
    this.#retrieve ??= this.#root.begin('retrieve', {
      atMs: this.#timeline.at('admitted') ?? performance.now(),
      attributes: { 'gen_ai.operation.name': 'retrieval', 'gen_ai.retrieval.top_k': topK, 'llavacode.rag.mode': mode },
    });
    return this.#retrieve.headers;
  }

  /** Headers of the call that an activity is. */
  headersOf(activity: Activity): TraceHeaders {
    return this.#spans.get(activity)?.headers ?? {};
  }

  #follow(activity: Activity): void {
    const { name, worker, beganMs } = activity;
    const span = this.#root.begin(name, {
      kind: worker === undefined ? 'internal' : 'client',
      atMs: beganMs,
      attributes: worker === undefined ? {} : { 'server.address': worker },
    });
    this.#spans.set(activity, span);
    if (!span.recorded) return;
    activity.observe({
      event: (event, atMs, facts) => span.event(event, atMs, facts),
      end: (atMs, error) => {
        this.#lastEndMs = atMs;
        span.end(atMs, error);
      },
    });
  }

  /** A part of the request is given to other workers. */
  replayed(reason: string): void {
    this.#root.event('replayed', performance.now(), { 'error.type': reason });
  }

  /** The answer has ended: writes the steps of the timeline and the request. What goes on writes itself. */
  end({ status, error, usage, finishReasons, context, replays, tenant }: TracedEnd): void {
    const root = this.#root;
    const finishedMs = this.#timeline.at('finished') ?? performance.now();
    if (root.recorded) {
      this.#writeSteps(finishedMs, context);
      root.set({
        'http.response.status_code': status,
        'gen_ai.usage.input_tokens': usage.promptTokens,
        'gen_ai.usage.output_tokens': usage.completionTokens,
        'gen_ai.usage.cache_read.input_tokens': usage.cachedTokens,
        'gen_ai.response.finish_reasons': finishReasons,
        'llavacode.usage.soft_tokens': usage.softTokens,
        'llavacode.replays': replays,
        'llavacode.tenant': tenant,
        'error.type': error,
      });
      const first = this.#timeline.at('first_token');
      if (first !== undefined) root.event('first_token', first);
    }
    // As the conventions have it, what the client has to mend is no error of the server's span.
    root.end(finishedMs, status >= 500 ? error : undefined);
  }

  #writeSteps(finishedMs: number, context: ContextReport | undefined): void {
    const timeline = this.#timeline;
    const write = (name: string, from: number | undefined, to: number | undefined) => {
      if (from !== undefined && to !== undefined && to > from) this.#root.begin(name, { atMs: from }).end(to);
    };
    write('receive', this.#beganMs, timeline.at('received'));
    for (const [name, from, to] of STEPS) write(name, timeline.at(from), timeline.at(to));
    write('answer', this.#lastEndMs, finishedMs);
    if (this.#retrieve === undefined) write('prepare', timeline.at('admitted'), timeline.at('retrieved'));
    this.#retrieve?.set({
      'llavacode.rag.chunks': context?.chunks.length,
      'llavacode.rag.degraded': context?.degraded,
    });
    this.#retrieve?.end(timeline.at('retrieved') ?? finishedMs);
  }
}
