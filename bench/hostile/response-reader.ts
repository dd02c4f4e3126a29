/**
 * Takes the answers on one connection of HTTP/1.1 apart. Node's client sends no request before the answer to the one
 * before it has come, so a client that pipelines its requests has to read for itself.
 */

interface Listener {
  onHead(status: number): void;
  onBody(bytes: Buffer): void;
  onEnd(): void;
}

/** The part of an answer that comes next. */
type Part =
  | { readonly is: 'head' | 'size' | 'trailer' }
  | { readonly is: 'body'; left: number; readonly chunked: boolean }
  | { readonly is: 'chunkEnd' };

const HEAD: Part = { is: 'head' };
const SIZE: Part = { is: 'size' };

export class ResponseReader {
  readonly #listener: Listener;
  #rest: Buffer = Buffer.alloc(0);
  #part: Part = HEAD;

  constructor(listener: Listener) {
    this.#listener = listener;
  }

  feed(bytes: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    for (let next = this.#step(); next; next = this.#step()) this.#part = next;
  }

  /** Takes one part. @returns the part that comes next; undefined where more bytes are needed. */
  #step(): Part | undefined {
    const part = this.#part;
    if (part.is === 'body') return this.#body(part);
    const line = this.#take(part.is === 'head' ? '\r\n\r\n' : '\r\n');
    if (line === undefined) return undefined;
    if (part.is === 'head') return this.#head(line);
    if (part.is === 'chunkEnd') return SIZE;
    if (part.is === 'trailer') return line === '' ? this.#end() : part;
    const left = Number.parseInt(line, 16);
    return left === 0 ? { is: 'trailer' } : { is: 'body', left, chunked: true };
  }

  #head(head: string): Part {
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1]);
    if (status < 200) return HEAD;
    this.#listener.onHead(status);
    if (/^transfer-encoding: *chunked/im.test(head)) return SIZE;
    const left = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0);
    return left === 0 ? this.#end() : { is: 'body', left, chunked: false };
  }

  #body(part: Extract<Part, { is: 'body' }>): Part | undefined {
    if (this.#rest.length === 0) return undefined;
    const bytes = this.#rest.subarray(0, part.left);
    this.#rest = this.#rest.subarray(bytes.length);
    this.#listener.onBody(bytes);
    const left = part.left - bytes.length;
    if (left > 0) return { ...part, left };
    return part.chunked ? { is: 'chunkEnd' } : this.#end();
  }

  #end(): Part {
    this.#listener.onEnd();
    return HEAD;
  }

  /** Takes the text before `mark`, and the mark. */
  #take(mark: string): string | undefined {
    const at = this.#rest.indexOf(mark);
    if (at < 0) return undefined;
    const text = this.#rest.toString('latin1', 0, at);
    this.#rest = this.#rest.subarray(at + mark.length);
    return text;
  }
}
