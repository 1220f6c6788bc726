package org.tfdwd.demo.core;

import java.util.List;

/** What a model says of a photo. */
public final class Finding {
    /** The best classes, best first; none where the model makes a picture. Not to be changed. */
    public final List<Answer> answers;
    /** What is to be shown; null where the model only tells classes apart. */
    public final Picture drawn;

    Finding(List<Answer> answers, Picture drawn) {
        this.answers = answers;
        this.drawn = drawn;
    }
}
