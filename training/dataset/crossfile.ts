/**
 * The chunks of other files that go with a hole, found by the index that serves: chunks of 10·n lines that overlap by
 * 5·n for a hole of n lines, compared with the 10·n lines before the hole and the 5·n after it.
 */
import { inTurns } from '../../services/lib/async/turns.ts';
import { chunkFile, identifiers } from '../../services/lib/rag/chunk.ts';
import type { InvertedIndex } from '../../services/lib/rag/search/inverted-index.ts';
import { InvertedIndexBuilder } from '../../services/lib/rag/search/inverted-index-builder.ts';
import { searchLexical } from '../../services/lib/rag/search/lexical.ts';
import { cursorQuery } from '../../services/lib/rag/search/query.ts';
import { DistinctChunks } from '../../services/lib/rag/search/sameness.ts';
import type { DATASET_RETRIEVERS } from '../choices.ts';

export type DatasetRetriever = (typeof DATASET_RETRIEVERS)[number];

export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

export interface FoundChunk extends SourceFile {
  /** By the retriever: for Jaccard |A∩B| / |A∪B|. */
  readonly score: number;
}

/** Lines of a chunk, and those between the starts of two, for each line of a hole. */
const CHUNK_LINES = 10;
const CHUNK_STRIDE = 5;
/** So many times as many hits are looked at as are wanted, since some repeat others or the text around the hole. */
const SPARE = 4;

export class ChunkIndex {
  readonly #index: InvertedIndex;
  readonly #chunks: readonly SourceFile[];
  readonly #lines: number;

  private constructor(index: InvertedIndex, chunks: readonly SourceFile[], lines: number) {
    this.#index = index;
    this.#chunks = chunks;
    this.#lines = lines;
  }

  /** @param files in the order of their paths. @param lines n. @throws the signal's reason. */
  static async build(files: readonly SourceFile[], lines: number, signal: AbortSignal): Promise<ChunkIndex> {
    const builder = new InvertedIndexBuilder();
    const chunks: SourceFile[] = [];
    function* steps() {
      const chunking = { chunkLines: CHUNK_LINES * lines, chunkStride: CHUNK_STRIDE * lines };
      for (const { path, text } of files) {
        for (const chunk of chunkFile(path, text, chunking)) {
          builder.add(chunk);
          chunks.push({ path, text: chunk.text });
        }
        yield;
      }
      return yield* builder.build();
    }
    return new ChunkIndex(await inTurns(steps(), signal), chunks, lines);
  }

  /**
   * The best chunks for a hole, best first, without those of its own file.
   * @param before all text before the hole @param after all text after it @throws the signal's reason.
   */
  async search(
    hole: { readonly path: string; readonly before: string; readonly after: string },
    retriever: DatasetRetriever,
    topK: number,
    signal: AbortSignal,
  ): Promise<FoundChunk[]> {
    const query = cursorQuery(hole.before, hole.after, CHUNK_LINES * this.#lines);
    const excludes = this.#index.excluding(hole.path);
    const hits = await searchLexical(this.#index, retriever, query.tokens, SPARE * topK, { excludes, signal });
    const best = new DistinctChunks<FoundChunk & { readonly tokens: readonly string[] }>(topK);
    for (const { ordinal, score } of hits) {
      const { path, text } = this.#chunks[ordinal]!;
      if (best.missing > 0 && !query.repeats(text)) best.add({ path, text, score, tokens: identifiers(text) });
    }
    return best.kept.map(({ path, text, score }) => ({ path, text, score }));
  }
}
