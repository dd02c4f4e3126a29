/**
 * The answer to a completion that has been let in, whole or as a stream, in the words of the API that was asked: what
 * all routes do alike once their translator has said how a choice is worded.
 */
import type { OutgoingHttpHeaders } from 'node:http';
import type { FastifyReply } from 'fastify';
import { answerBytes } from '../completion/answer-size.ts';
import type { Choice, ChoiceDelta, TokenReport } from '../completion/choice.ts';
import type { RequestRecord } from '../completion/request-record.ts';
import type { CompletionCall, CompletionParts } from './completion-call.ts';
import { asServingError, type ErrorBody, errorBody } from './errors.ts';
import { jsonPieces } from './json.ts';
import { closeAfterLinger } from './limits.ts';
import { Outlet } from './outlet.ts';
import { EventStream, type StreamFormat } from './sse.ts';

/** What an API says of a completion. */
export interface AnswerWords {
  /** How the values of a stream are written. */
  readonly format: StreamFormat;
  /** The body of a whole answer. @param choices those that are given back, prompt by prompt, each of them whole. */
  whole(choices: readonly ChoiceDelta[]): object;
  /** The values of a stream for new output of one choice. @param first whether nothing was sent before. */
  part(delta: ChoiceDelta, first: boolean): readonly object[];
  /** The last value of a stream, if there is one besides those of its choices. */
  last?(): object | undefined;
  /** A failure after a stream has begun; OpenAI's shape where not given. */
  failure?(body: ErrorBody): object;
}

/** An answer of about so many bytes, or more, is sent in pieces. */
const LONG = 64 * 1024;

/** Completes a request and sends the answer. @throws ServingError for a failure before the answer has begun. */
export function answerWith(
  call: CompletionCall,
  words: AnswerWords,
  parts: CompletionParts,
  reply: FastifyReply,
): Promise<unknown> {
  return call.request.stream ? streamed(call, words, parts, reply) : whole(call, words, parts, reply);
}

async function whole(
  { request, record, scope, arm: { journey } }: CompletionCall,
  words: AnswerWords,
  { slowReaderMs, acceptance }: CompletionParts,
  reply: FastifyReply,
): Promise<unknown> {
  const collected = new CollectedChoices();
  const choices = await journey.complete(request, { ...scope, emit: (delta) => collected.add(delta) });
  const { usage } = record;
  acceptance.answered(scope.tenant, scope.id, record);
  const body = words.whole(collected.kept(choices, request.n));
  const perPrompt = request.bestOf * answerBytes(request, usage.promptTokens, 0);
  if (perPrompt + answerBytes(request, 0, usage.completionTokens) < LONG) return body;
  await sendLong(body, reply, new Outlet(reply.raw, scope.signal, slowReaderMs), record);
}

/** Sends a body in pieces. A completion counts as in flight until it is out, and ends when its time is over. */
export async function sendLong(body: object, reply: FastifyReply, outlet: Outlet, record?: RequestRecord) {
  const { raw } = reply.hijack();
  raw.writeHead(200, {
    ...(reply.getHeaders() as OutgoingHttpHeaders),
    'content-type': 'application/json; charset=utf-8',
  });
  try {
    await outlet.sendPieces(jsonPieces(body));
    raw.end();
    closeAfterLinger(raw);
  } catch (error) {
    record?.failed(asServingError(error)); // the status is out: a client sees that the answer breaks off
    raw.destroy();
  }
}

async function streamed(
  { request, record, scope, arm: { journey } }: CompletionCall,
  words: AnswerWords,
  { slowReaderMs, acceptance }: CompletionParts,
  reply: FastifyReply,
): Promise<void> {
  const events = new EventStream(reply, scope.signal, slowReaderMs, words.format);
  try {
    await journey.complete(request, {
      ...scope,
      emit: async (delta) => {
        const first = !events.open;
        if (first) acceptance.answered(scope.tenant, scope.id, record);
        for (const value of words.part(delta, first)) await events.send(value, delta.echo !== undefined);
      },
    });
    record.timeline.mark('last_token');
    events.end(words.last?.());
  } catch (error) {
    if (!events.open) throw error;
    const failure = asServingError(error);
    record.failed(failure);
    const body = errorBody(failure, reply.request.id, reply.server.tellsInside);
    events.end(words.failure?.(body) ?? body);
  }
}

/** A choice so far. */
type Gathered = ChoiceDelta & { tokenIds: number[]; reports: TokenReport[] | undefined };

/** Gathers the deltas of a whole answer. */
class CollectedChoices {
  readonly #choices = new Map<string, Gathered>();

  add(delta: ChoiceDelta): void {
    const key = `${delta.prompt}.${delta.choice}`;
    const { tokenIds, reports, text, finishReason, stopString } = delta;
    const before = this.#choices.get(key);
    before?.tokenIds.push(...tokenIds);
    before?.reports?.push(...(reports ?? []));
    this.#choices.set(key, {
      ...(before ?? { ...delta, tokenIds: [...tokenIds], reports: reports && [...reports] }),
      text: (before?.text ?? '') + text,
      finishReason,
      stopString,
    });
  }

  /** @param choices prompt by prompt; the `n` with the highest mean logprob are kept of each prompt's `best_of`. */
  kept(choices: readonly (readonly Choice[])[], n: number): ChoiceDelta[] {
    return choices.flatMap((promptChoices, prompt) =>
      bestOf(promptChoices, n).map((choice) => this.#choices.get(`${prompt}.${promptChoices.indexOf(choice)}`)!),
    );
  }
}

function bestOf(choices: readonly Choice[], n: number): readonly Choice[] {
  if (choices.length === n) return choices;
  return choices.toSorted((a, b) => b.meanLogprob - a.meanLogprob).slice(0, n);
}
