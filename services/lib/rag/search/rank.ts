/** Searches a loaded index with the retriever that is asked for. */
import { ServingError } from '../../process/errors.ts';
import type { RetrieverName } from '../retriever-name.ts';
import { contextFingerprint, holdsEmbeddings } from '../store/row.ts';
import { fuse, fusedDepth } from './fused.ts';
import type { LoadedIndex } from './index-cache.ts';
import { searchLexical } from './lexical.ts';
import type { CursorQuery } from './query.ts';
import type { QueryEncoder } from './query-encoder.ts';
import type { Hit } from './top-hits.ts';

export interface Search {
  readonly repo: string;
  readonly retriever: RetrieverName;
  readonly query: CursorQuery;
  /** Chunks that are wanted in the end: the fused retriever chooses by it how deep the rankings are that it merges. */
  readonly topK: number;
  /** Hits to find. */
  readonly depth: number;
  /** The file being edited: its chunks are left out. */
  readonly path: string | undefined;
  /** Files of which the client has sent a newer text: their chunks are left out, too. */
  readonly replaced?: readonly string[];
  /** Undefined if the model has no encoder. */
  readonly encoder: (() => Promise<QueryEncoder>) | undefined;
  /** Aborted when nobody waits for the hits any more. */
  readonly signal: AbortSignal;
}

/**
 * The best chunks, best first; undefined if the store has dropped rows of this version.
 * @throws ServingError invalid_request if the index has no embeddings or this process no encoder to compare them with;
 *   store_invalid if the index was made with another encoder; what the encoder throws; the signal's reason.
 */
export async function rank(index: LoadedIndex, search: Search): Promise<readonly Hit[] | undefined> {
  const { retriever, query, topK, depth, path, replaced, signal } = search;
  const excludes = index.lexical.excluding(path, replaced);
  const lexical = (name: 'jaccard' | 'bm25', hits: number) =>
    searchLexical(index.lexical, name, query.tokens, hits, { excludes, signal });
  const dense = async (hits: number) => {
    const embedding = await embed(index, search);
    return embedding && (await index.dense(embedding.length, signal))?.search(embedding, hits, { excludes, signal });
  };
  switch (retriever) {
    case 'none':
      return [];
    case 'jaccard':
    case 'bm25':
      return lexical(retriever, depth);
    case 'dense':
      return query.text === '' ? [] : dense(depth);
    case 'fused': {
      const merged = fusedDepth(topK);
      const similar = query.text === '' ? [] : await dense(merged);
      return similar && fuse([await lexical('jaccard', merged), await lexical('bm25', merged), similar], depth);
    }
  }
}

async function embed({ head }: LoadedIndex, { repo, retriever, query, encoder }: Search): Promise<Float32Array> {
  const refused = (why: string) =>
    new ServingError('invalid_request', `retriever ${retriever} compares embeddings, ${why}`, { param: 'retriever' });
  if (!encoder) throw refused('but the model that is served has no encoder: ask for jaccard or bm25');
  if (!holdsEmbeddings(head.fingerprint)) {
    throw refused(`but the index of ${repo} holds none: index it with --retriever dense or fused`);
  }
  const { fingerprint, embed } = await encoder();
  if (fingerprint !== contextFingerprint(head.fingerprint)) {
    throw new ServingError(
      'store_invalid',
      `the index of ${repo} was made with encoder ${contextFingerprint(head.fingerprint)}, but queries are encoded with ${fingerprint}`,
    );
  }
  return embed(query.text);
}
