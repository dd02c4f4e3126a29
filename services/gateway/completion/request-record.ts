/** The record of one request: filled on its way, written once at its end as metrics and one log line. */
import { createHmac, randomBytes } from 'node:crypto';
import type { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics, observeTraced, tenantLabel } from '../../lib/process/metrics.ts';
import type { TraceHeaders } from '../../lib/process/span.ts';
import { isTracing } from '../../lib/process/tracing.ts';
import type { FinishReason } from '../../lib/request/next-token.ts';
import { SPANS, Timeline, type TimelineStage } from '../../lib/request/timeline.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { ContextReport } from '../context/context.ts';
import type { Usage } from '../request.ts';
import type { AttemptObserver, WorkerCall } from './attempt.ts';
import type { ChoiceDelta } from './choice.ts';
import type { RedactedSample } from './redacted-sample.ts';
import { RequestTrace } from './request-trace.ts';

/** Times at which the tokens of one choice came, in ms of the monotonic clock. */
interface Arrivals {
  readonly first: number;
  last: number;
  tokens: number;
}

/**
 * Sessions are named by clients, often after a person or a machine. The log must tell two sessions apart and no more:
 * the key is new with every process, so that nobody can find a name by hashing guesses.
 */
const SESSION_KEY = randomBytes(32);
const sessionDigest = (session: string) => createHmac('sha256', SESSION_KEY).update(session).digest('hex').slice(0, 16);

/** The head of a request, as far as its trace says it. */
interface TracedHead {
  readonly headers: TraceHeaders;
  readonly method: string;
  /** The route that serves it, such as `/v1/completions`. */
  readonly route: string;
}

export class RequestRecord {
  readonly timeline = new Timeline();
  /** undefined where traces are off. */
  readonly trace: RequestTrace | undefined;
  #tenant: string | undefined;
  /** Name of the served model; '' before it is known that the request is for it. */
  #model = '';
  #repo: string | undefined;
  #session: string | undefined;
  #arm = 'stable';
  /** Addresses of the workers that were given the request, in the order of their first use. */
  readonly #prefillWorkers = new Set<string>();
  readonly #decodeWorkers = new Set<string>();
  #context: ContextReport | undefined;
  #suffixLeftOut = false;
  #onPrepared: () => void = () => {};
  #error: ServingError | undefined;
  #sample: RedactedSample | undefined;
  readonly #arrivals = new Map<string, Arrivals>();
  readonly #gaps: number[] = [];
  readonly #finishReasons: FinishReason[] = [];
  #promptCut = false;
  #promptTokens = 0;
  #softTokens = 0;
  #cachedTokens = 0;
  #replays = 0;
  #acceptedPredicted = 0;
  #rejectedPredicted = 0;
  #outputTokens = 0;
  /** Output tokens of each choice that workers have made. */
  readonly #decoded = new Map<string, number>();
  /** Tokens of the prompt and the output that another request was charged for. */
  #tokensOfOthers = 0;
  #detokenizeMs = 0;

  /** @param head of the HTTP request, if it is to be traced. */
  constructor(head?: TracedHead) {
    if (head === undefined || !isTracing()) return;
    const attributes = { 'http.request.method': head.method, 'http.route': head.route };
    this.trace = RequestTrace.begin(this.timeline, head.headers, attributes);
  }

  /** Whether workers were given any of its prompts. */
  get dispatched(): boolean {
    return this.#prefillWorkers.size > 0;
  }

  /** Name of the repository that the request asks about, which its key may use; undefined where there is none. */
  get repo(): string | undefined {
    return this.#repo;
  }

  /** The context that was found for the prompt; undefined where the request did not ask for any. */
  get context(): ContextReport | undefined {
    return this.#context;
  }

  /** Whether something of the client's own text was left out of a prompt. */
  get promptCut(): boolean {
    return this.#promptCut;
  }

  /** `unsupported` where the model cannot fill in the middle, and the request's suffix was left out. */
  get suffix(): 'unsupported' | undefined {
    return this.#suffixLeftOut ? 'unsupported' : undefined;
  }

  /** How the request failed; undefined as long as it has not. */
  get error(): ServingError | undefined {
    return this.#error;
  }

  /** It is known which tenant's key the request has. */
  ofTenant(tenant: string): void {
    this.#tenant = tenant;
  }

  /** @param model name of the served model, which the request is for. */
  asksFor(model: string): void {
    this.#model = model;
  }

  /** It is known who asks. */
  askedBy(tenant: string, session: string | undefined): void {
    this.#tenant = tenant;
    this.#session = session === undefined ? undefined : sessionDigest(session);
  }

  /** Which of the bundles side by side serves it: `stable` until it is said. */
  servedBy(arm: string): void {
    this.#arm = arm;
  }

  /** Another bundle serves it from the beginning; its tenant is charged for what was computed until now as well. */
  servedInstead(arm: string): void {
    this.#tokensOfOthers = -this.computedTokens;
    this.#arm = arm;
    this.#promptTokens = 0;
    this.#softTokens = 0;
    this.#cachedTokens = 0;
    this.#outputTokens = 0;
    this.#decoded.clear();
    this.#arrivals.clear();
    this.#gaps.length = 0;
    this.#finishReasons.length = 0;
  }

  get arm(): string {
    return this.#arm;
  }

  /** @param repo a name that has been checked: the log has it as it is. */
  asksAbout(repo: string): void {
    this.#repo = repo;
  }

  /** Workers are given a prompt of the request, for the first time or again. */
  placed(prefill: string, decodes: readonly string[]): void {
    this.#prefillWorkers.add(prefill);
    for (const decode of decodes) this.#decodeWorkers.add(decode);
  }

  contextFound(report: ContextReport): void {
    this.#context = report;
  }

  /** The request's suffix is not in the prompt: the model cannot fill in the middle. */
  suffixLeftOut(): void {
    this.#suffixLeftOut = true;
  }

  /** Is told when a prompt is ready, and what stands in it is known: before anything of the answer goes out. */
  whenPrepared(listener: () => void): void {
    this.#onPrepared = listener;
  }

  /** A prompt is ready. @param cut whether something of it was left out because the model does not hold all of it. */
  prepared(cut: boolean): void {
    this.#promptCut ||= cut;
    this.timeline.mark('tokenized');
    this.#onPrepared();
  }

  failed(error: ServingError): void {
    this.#error = error;
  }

  /** Adds a redacted sample of this completion to the log line. */
  attachSample(sample: RedactedSample): void {
    this.#sample = sample;
  }

  /** A prompt goes to prefill for the first time. */
  prompted(prompt: TokenPrompt): void {
    this.#promptTokens += prompt.ids.length;
    this.#softTokens += prompt.soft.positions.length;
  }

  /** The output of an earlier request is this one's: its prompt has been computed. */
  continued(prompt: TokenPrompt): void {
    this.timeline.mark('dispatched');
    this.prompted(prompt);
    this.#cachedTokens += prompt.ids.length;
    this.chargedToOther(prompt.ids.length);
  }

  /** @param tokens that another request was charged for; where negative, what is computed again after all. */
  chargedToOther(tokens: number): void {
    this.#tokensOfOthers += tokens;
  }

  /** A worker is called for a part of the request. */
  called(name: 'prefill' | 'decode', worker: string): WorkerCall {
    const activity = this.timeline.begin(name, worker);
    return { activity, headers: this.trace?.headersOf(activity) };
  }

  /** A worker was lost, and its part of the request is done again. @param reason code of the error. */
  replayed(reason: string): void {
    this.timeline.mark('replayed');
    this.trace?.replayed(reason);
    this.#replays++;
  }

  /**
   * Takes the durations that the workers measured on their own clocks.
   * @param isReplay a replay: stage times keep those of the first attempt.
   */
  observerFor(isReplay: boolean): AttemptObserver {
    const stage = (name: TimelineStage, microseconds: number) => {
      if (!isReplay) this.timeline.stage(name, microseconds / 1e6);
    };
    return {
      onAccepted: ({ queueUs }) => stage('prefill_queue', queueUs),
      onFirst: ({ prefillUs, cachedTokens }) => {
        stage('prefill', prefillUs);
        if (!isReplay) this.#cachedTokens += cachedTokens;
      },
      onJoined: ({ queueUs, handoffUs, handoffExposedUs }) => {
        this.timeline.mark('joined');
        stage('decode_queue', queueUs);
        stage('handoff', handoffUs);
        stage('handoff_exposed', handoffExposedUs);
      },
    };
  }

  /** Adds time spent on detokenizing, in ms. */
  detokenized(ms: number): void {
    this.#detokenizeMs += ms;
    this.timeline.stage('detokenize', this.#detokenizeMs / 1000);
  }

  /**
   * Workers have come to a token of a choice, whether or not it ever goes out. What is made again, after the loss of a
   * worker, counts once.
   * @param tokens of the choice, from its beginning.
   */
  decoded(prompt: number, choice: number, tokens: number): void {
    const key = `${prompt}.${choice}`;
    this.#decoded.set(key, Math.max(tokens, this.#decoded.get(key) ?? 0));
  }

  /** Tokens were proposed from the client's prediction. */
  predicted(accepted: number, rejected: number): void {
    this.#acceptedPredicted += accepted;
    this.#rejectedPredicted += rejected;
  }

  /** Tokens of a choice that workers have come to. */
  decodedOf(prompt: number, choice: number): number {
    return this.#decoded.get(`${prompt}.${choice}`) ?? 0;
  }

  /**
   * Tokens of prompts and output that workers have computed for this request: more than the usage where a client does
   * not read, less where it goes on with the output of another request.
   */
  get computedTokens(): number {
    const decoded = [...this.#decoded.values()].reduce((sum, tokens) => sum + tokens, 0);
    return this.#promptTokens + Math.max(this.#outputTokens, decoded) - this.#tokensOfOthers;
  }

  /** Tokens of a choice, as they go out to the client. */
  delivered(delta: ChoiceDelta, atMs = performance.now()): void {
    if (delta.finishReason !== null) this.#finishReasons.push(delta.finishReason);
    if (delta.prompt === 0 && delta.choice === 0) this.#sample?.add(delta.text);
    if (delta.tokenIds.length === 0) return;
    this.#outputTokens += delta.tokenIds.length;
    this.timeline.mark('first_token', atMs);
    const key = `${delta.prompt}.${delta.choice}`;
    const arrivals = this.#arrivals.get(key);
    if (arrivals === undefined) {
      this.#arrivals.set(key, { first: atMs, last: atMs, tokens: delta.tokenIds.length });
      return;
    }
    this.#gaps.push((atMs - arrivals.last) / 1000);
    arrivals.last = atMs;
    arrivals.tokens += delta.tokenIds.length;
  }

  /** Time that a worker computed the prompt for, in ms, as it reported it; 0 before that. */
  get prefillMs(): number {
    return (new Map(this.timeline.stages()).get('prefill') ?? 0) * 1000;
  }

  /** Time from the first token to the last one so far, in ms. */
  get decodeMs(): number {
    const arrivals = [...this.#arrivals.values()];
    if (arrivals.length === 0) return 0;
    const first = Math.min(...arrivals.map(({ first }) => first));
    return Math.max(...arrivals.map(({ last }) => last)) - first;
  }

  get usage(): Usage {
    return {
      promptTokens: this.#promptTokens,
      completionTokens: this.#outputTokens,
      cachedTokens: this.#cachedTokens,
      softTokens: this.#softTokens,
      acceptedPredicted: this.#acceptedPredicted,
      rejectedPredicted: this.#rejectedPredicted,
    };
  }

  /** Called once, when the answer has ended one way or another. */
  end(log: Pick<Logger, 'info' | 'debug'>, status: number): void {
    const last = Math.max(...[...this.#arrivals.values()].map((arrivals) => arrivals.last));
    if (Number.isFinite(last)) this.timeline.mark('last_token', last);
    this.timeline.mark('finished');
    this.#observe();
    this.trace?.end({
      status,
      error: this.#error?.code,
      usage: this.usage,
      finishReasons: this.#finishReasons,
      context: this.#context,
      replays: this.#replays,
      tenant: this.#tenant,
    });
    // Refused keys have a line of their own, of which there is a bounded number.
    const level = this.#error?.code === 'invalid_api_key' ? 'debug' : 'info';
    log[level](this.#line(status), 'completion');
  }

  #line(status: number): object {
    const { usage, rag } = spelledForLog(this.usage, this.#context);
    return {
      status,
      code: this.#error?.code,
      // What the client may not have been told in full.
      err: this.#error !== undefined && this.#error.publicMessage === undefined ? this.#error : undefined,
      tenant: this.#tenant,
      repo: this.#repo,
      session: this.#session,
      arm: this.#arm,
      prefill: [...this.#prefillWorkers],
      decode: [...this.#decodeWorkers],
      replays: this.#replays,
      usage,
      finish: this.#finishReasons,
      rag,
      suffix: this.suffix,
      timeline: this.timeline,
      sample: this.#sample,
    };
  }

  #observe(): void {
    const { usage, timeline } = this;
    metrics.promptTokens.inc(usage.promptTokens);
    metrics.softTokens.inc(usage.softTokens);
    metrics.cachedTokens.inc(usage.cachedTokens);
    metrics.generationTokens.inc(usage.completionTokens);
    for (const gap of this.#gaps) metrics.itl.observe(gap);
    if (timeline.ttft !== undefined) observeTraced(metrics.ttft, timeline.ttft, this.trace?.exemplar);
    this.#observeGenAi();
    this.#observeTenant();
    if (this.#context?.degraded) metrics.degraded.inc({ reason: this.#context.degraded });
    if (this.#context?.ladder) metrics.laddered.inc(this.#context.ladder);
    this.#observeArm();
    if (this.#context) metrics.retrieved.inc({ mode: this.#context.mode }, this.#context.chunks.length);
    if (this.#error) metrics.refused.inc({ code: this.#error.code });
    const limit = this.#error?.limit;
    if (limit !== undefined) metrics.shed.inc({ limit, knob: limit });
    if (this.#error) return;
    for (const reason of this.#finishReasons) metrics.success.inc({ finished_reason: reason });
    for (const tpot of this.#tpots) observeTraced(metrics.tpot, tpot, this.trace?.exemplar);
    metrics.e2e.observe(timeline.between('received', 'finished') ?? 0);
    this.#observeQueue();
    metrics.requestPromptTokens.observe(usage.promptTokens);
    metrics.requestGenerationTokens.observe(usage.completionTokens);
    for (const [stage, [from, to]] of Object.entries(SPANS)) {
      const seconds = timeline.between(from, to);
      if (seconds !== undefined) metrics.stage.observe({ stage }, seconds);
    }
    for (const [stage, seconds] of timeline.stages()) metrics.stage.observe({ stage }, seconds);
  }

  #observeArm(): void {
    const arm = this.#arm;
    metrics.armRequests.inc({ arm, outcome: this.#error?.code ?? 'ok' });
    if (this.timeline.ttft !== undefined) metrics.armTtft.observe({ arm }, this.timeline.ttft);
    if (this.#context?.degraded) metrics.armDegraded.inc({ arm, reason: this.#context.degraded });
  }

  /** Times per output token of all choices, in seconds, where the request succeeded. */
  get #tpots(): number[] {
    if (this.#error) return [];
    const many = [...this.#arrivals.values()].filter(({ tokens }) => tokens > 1);
    return many.map(({ first, last, tokens }) => (last - first) / 1000 / (tokens - 1));
  }

  #observeGenAi(): void {
    const { timeline, trace } = this;
    const labels = {
      gen_ai_operation_name: 'text_completion',
      gen_ai_provider_name: 'llavacode',
      gen_ai_request_model: this.#model,
    };
    const duration = timeline.between('received', 'finished');
    const failed = { ...labels, error_type: this.#error?.code ?? '' };
    if (duration !== undefined) observeTraced(metrics.genAiDuration, duration, trace?.exemplar, failed);
    if (timeline.ttft !== undefined) observeTraced(metrics.genAiTtft, timeline.ttft, trace?.exemplar, labels);
    for (const tpot of this.#tpots) observeTraced(metrics.genAiTpot, tpot, trace?.exemplar, labels);
  }

  #observeTenant(): void {
    if (this.#tenant === undefined) return;
    const tenant = tenantLabel(this.#tenant);
    const { promptTokens, completionTokens } = this.usage;
    if (this.timeline.ttft !== undefined) metrics.tenantTtft.observe({ tenant }, this.timeline.ttft);
    for (const tpot of this.#tpots) metrics.tenantTpot.observe({ tenant }, tpot);
    metrics.tenantPromptTokens.inc({ tenant }, promptTokens);
    metrics.tenantGenerationTokens.inc({ tenant }, completionTokens);
    metrics.tenantRequests.inc({ tenant, outcome: this.#error?.code ?? 'ok' });
  }

  /** The prompt waited here until it was dispatched, and then in the prefill worker; after that it was worked on. */
  #observeQueue(): void {
    const { timeline } = this;
    const inWorker = new Map(timeline.stages()).get('prefill_queue') ?? 0;
    const inGateway = timeline.between('tokenized', 'dispatched');
    if (inGateway !== undefined) metrics.queueTime.observe(inGateway + inWorker);
    const sinceDispatch = timeline.between('dispatched', 'last_token');
    if (sinceDispatch !== undefined) metrics.inference.observe(Math.max(sinceDispatch - inWorker, 0));
  }
}

/** Usage and context as the log line spells them: as in the answers, so that one search finds both. */
function spelledForLog({ promptTokens, completionTokens, cachedTokens, softTokens }: Usage, context?: ContextReport) {
  return {
    usage: {
      prompt_tokens: promptTokens,
      completion_tokens: completionTokens,
      total_tokens: promptTokens + completionTokens,
      prompt_tokens_details: { cached_tokens: cachedTokens, soft_tokens: softTokens },
    },
    rag: context && {
      mode: context.mode,
      chunks: context.chunks.length,
      index_version: context.indexVersion,
      degraded: context.degraded,
      ladder: context.ladder,
    },
  };
}
