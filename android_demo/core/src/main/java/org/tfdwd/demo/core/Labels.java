package org.tfdwd.demo.core;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The names of the classes. */
public final class Labels {
    /** No names: every class is called by its number, "class 0" and so on. */
    public static final Labels NONE = new Labels(Collections.<String>emptyList());

    private final List<String> names;

    private Labels(List<String> names) {
        this.names = names;
    }

    /**
     * Reads one label from each line, in UTF-8; empty lines at the end are ignored. The stream is
     * not closed.
     *
     * @throws DemoException it cannot be read, or holds no label.
     */
    public static Labels read(InputStream stream) {
        List<String> names = new ArrayList<String>();
        try {
            BufferedReader reader =
                    new BufferedReader(new InputStreamReader(stream, StandardCharsets.UTF_8));
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                names.add(line.trim());
            }
        } catch (IOException error) {
            throw new DemoException("cannot read the labels: " + error.getMessage(), error);
        }
        while (!names.isEmpty() && names.get(names.size() - 1).isEmpty()) {
            names.remove(names.size() - 1);
        }
        if (names.isEmpty()) {
            throw new DemoException("expected a label on each line, got an empty file");
        }
        return new Labels(names);
    }

    /** How many there are; 0 for {@link #NONE}. */
    int count() {
        return names.size();
    }

    /**
     * Looks whether they fit.
     *
     * @param model of those classes, for the message.
     * @throws DemoException another number of labels.
     */
    void check(String model, int classes) {
        if (this != NONE && names.size() != classes) {
            throw new DemoException(model + ": expected a label for each of its " + classes
                    + " classes, got " + names.size());
        }
    }

    /** The label of a class from 0, or "class 12" where there are none. */
    public String of(int index) {
        return names.isEmpty() ? "class " + index : names.get(index);
    }
}
